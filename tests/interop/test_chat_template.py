"""LLaMA-Factory's templates as Jinja write what its own pieces write."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from plaudit.errors import ModelError
from plaudit.interop.llama_factory.templates import (
    BOS,
    EOS,
    KIND,
    NAMES,
    RULE_VERSIONS,
    chat_template_of,
    fill,
    template_of,
)
from plaudit.types import Rendering, ScoredTokenRule
from tests.models import tiny_tokenizer

pytestmark = pytest.mark.heavy
TURNS = ["What is {{ 1 + 1 }}?", 'It is "two".\n', "Sure\\n?", "Yes."]


def known() -> Iterator[tuple[str, str]]:
    """Every template in every release that had it."""
    for name in NAMES:
        for version in RULE_VERSIONS:
            try:
                template_of(name, version)
            except ModelError:
                continue
            yield name, version


@pytest.mark.parametrize("system", ["", "Be brief."])
@pytest.mark.parametrize(("name", "version"), list(known()))
def test_the_text_is_the_same(name: str, version: str, system: str) -> None:
    strings = template_of(name, version).strings()
    tokenizer = tiny_tokenizer()
    rendering = Rendering(kind=KIND, strings=strings)
    template = chat_template_of(rendering, ScoredTokenRule(), tokenizer)
    if strings["thought"] is not None:
        assert template is None
        return
    tokens = {BOS: tokenizer.bos_token, EOS: tokenizer.eos_token}
    for count in (2, 4):
        wanted = "".join(tokens.get(p, p) for p in fill(strings, system, TURNS[:count]))
        roles = ["user", "assistant"] * 2
        messages = [{"role": "system", "content": system}] if system else []
        messages += [
            {"role": role, "content": text}
            for role, text in zip(roles, TURNS[:count], strict=False)
        ]
        found = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
        assert found == wanted


def test_the_end_token_stays_off_where_the_one_before_is_scored() -> None:
    tokenizer = tiny_tokenizer()
    strings = template_of("default", "0.8.2").strings()
    scored_token = ScoredTokenRule(rule="before_trailing_pad", pad_id=tokenizer.eos_token_id)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]

    def text(scored_token: ScoredTokenRule) -> str:
        template = chat_template_of(Rendering(kind=KIND, strings=strings), scored_token, tokenizer)
        rendered = tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)
        assert isinstance(rendered, str)
        return rendered

    assert text(ScoredTokenRule()) == text(scored_token) + str(tokenizer.eos_token)
