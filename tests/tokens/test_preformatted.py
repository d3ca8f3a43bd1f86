"""Texts that clients rendered: start and end token once, padding never, the template's tail."""

from __future__ import annotations

import pytest

from plaudit.tokens.encode import Encoder
from plaudit.tokens.preformatted import (
    SpecialTokens,
    encode_preformatted,
    special_tokens_of,
    without_padding,
)
from plaudit.types import Rendering
from tests.models import CHAT_TEMPLATE, tiny_tokenizer

pytestmark = pytest.mark.heavy

CHATML = (
    "{%- for message in messages %}{{- '<|' + message['role'] + '|>' + message['content'] }}"
    "{{- '</s>\\n' }}{%- endfor %}"
)


def encoder(template: str | None = CHAT_TEMPLATE, **options: object) -> Encoder:
    return Encoder(tokenizer=tiny_tokenizer(chat_template=template), max_length=256, **options)  # type: ignore[arg-type]


def ids(found: Encoder, text: str, kind: str = "chat", **options: bool) -> list[int]:
    (one,) = encode_preformatted(found, special_tokens_of(found, kind), [text], **options)  # type: ignore[arg-type]
    return one.tolist()


def test_habits_are_what_the_template_writes() -> None:
    assert special_tokens_of(encoder(), "chat") == SpecialTokens(
        text="chat", begins_with_start=True, tail="</s>"
    )
    chatml = special_tokens_of(encoder(CHATML), "chat")
    assert (chatml.begins_with_start, chatml.tail) == (False, "</s>\n")


def test_without_a_template_nothing_is_known() -> None:
    assert special_tokens_of(encoder(None), "text") == SpecialTokens(
        text="text", begins_with_start=False, tail=""
    )


TEXT = "<|user|>what is it</s><|assistant|>a fox</s>"


@pytest.mark.parametrize(
    "text",
    [
        f"<s>{TEXT}",
        TEXT,
        f"<s><s>{TEXT}",
        f"<pad><pad><s>{TEXT}<pad>",
        f"</s></s><s>{TEXT}</s></s>",
    ],
)
def test_start_and_end_once_and_no_padding(text: str) -> None:
    found = encoder()
    expected = found.tokenizer(f"<s>{TEXT}", add_special_tokens=False)["input_ids"]
    assert ids(found, text) == expected


def test_a_chat_text_that_was_cut_off_gets_no_end() -> None:
    found = encoder()
    assert ids(found, "<s><|user|>what")[-1] != found.tokenizer.eos_token_id


def test_a_plain_text_ends_once() -> None:
    found = encoder(None)
    end = found.tokenizer.eos_token_id
    assert ids(found, "a fox", "text") == ids(found, "a fox</s>", "text")
    assert ids(found, "a fox", "text").count(end) == 1


def test_the_tail_is_completed_only_where_asked() -> None:
    found = encoder(CHATML)
    assert ids(found, TEXT, complete=True) == ids(found, TEXT + "\n")
    assert ids(found, TEXT) != ids(found, TEXT + "\n")
    assert ids(found, TEXT + "\n", complete=True) == ids(found, TEXT + "\n")
    assert ids(found, "<|user|>cut", complete=True) == ids(found, "<|user|>cut")


def test_a_model_of_both_kinds_tells_a_rendered_text_by_its_end() -> None:
    found = encoder()
    assert ids(found, f"<s>{TEXT}", "mixed") == ids(found, f"<s>{TEXT}", "chat")
    assert ids(found, "a fox", "mixed") == ids(found, "a fox", "text")


def test_openrlhf_closes_every_text_its_own_way() -> None:
    found = encoder(rendering=Rendering(kind="openrlhf"))
    plain = found.tokenizer("a fox </s>", add_special_tokens=False)["input_ids"]
    assert ids(found, "a fox\n") == plain


def test_an_end_token_that_also_starts_is_left_at_the_front() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "</s>"
    assert without_padding(tokenizer, "</s>a</s>") == "</s>a</s>"
