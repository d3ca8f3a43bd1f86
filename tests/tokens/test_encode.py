"""Conversations to token trees: one start, one end, one shared prefix, lengths kept to policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from plaudit.errors import DataError, ModelError
from plaudit.tokens.encode import (
    IDENTICAL_TOKENS,
    OVER_LENGTH,
    TEMPLATE_ERROR,
    Encoder,
    common_prefix,
    encode,
    grow_tree,
    proportional_lengths,
    why_untrainable,
)
from plaudit.types import Comparison, IntArray, Message, Skipped, TokenTree, Turns
from tests.models import CHAT_TEMPLATE, tiny_tokenizer

pytestmark = pytest.mark.heavy

BOS, EOS = 0, 1


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


def comparison(
    prompt: Turns,
    *responses: Turns,
    tools: tuple[Mapping[str, Any], ...] | None = None,
    **template: Any,
) -> Comparison:
    return Comparison(
        id="1",
        prompt=prompt,
        responses=responses,
        grades=tuple(float(-k) for k in range(len(responses))),
        group="g",
        source="s",
        where="pairs.jsonl:1",
        tools=tools,
        chat_template_kwargs=template,
    )


def says(role: str, content: Any) -> tuple[Message, ...]:
    return (Message(role=role, content=content),)


def chat(question: str, *answers: str, **options: Any) -> Comparison:
    return comparison(
        says("user", question), *(says("assistant", text) for text in answers), **options
    )


def tree_of(encoder: Encoder, item: Comparison) -> TokenTree:
    (outcome,) = encode(encoder, [item])
    assert isinstance(outcome, TokenTree), outcome
    return outcome


def refusal_of(encoder: Encoder, item: Comparison) -> Skipped:
    (outcome,) = encode(encoder, [item])
    assert isinstance(outcome, Skipped), outcome
    return outcome


def whole(tree: TokenTree) -> list[list[int]]:
    return [np.concatenate([tree.prefix, branch]).tolist() for branch in tree.branches]


def made_by(tokenizer: PreTrainedTokenizerFast, before: str, after: str) -> PreTrainedTokenizerFast:
    """The tokenizer with a post-processor that adds special tokens around every text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{before} $A {after}".strip(), special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return tokenizer


# ---- start and end tokens


@pytest.mark.parametrize("adds", [("", ""), ("<s>", ""), ("<s>", "</s>")])
@pytest.mark.parametrize("writes", ["", "{{ bos_token }}", "{{ bos_token }}{{ bos_token }}"])
def test_a_conversation_starts_once(adds: tuple[str, str], writes: str) -> None:
    """The template writes the special tokens; what the tokenizer would add is not added."""
    tokenizer = made_by(tiny_tokenizer(chat_template=writes + CHAT_TEMPLATE), *adds)
    for ids in whole(tree_of(Encoder(tokenizer=tokenizer, max_length=99), chat("a", "b", "c"))):
        assert ids.count(BOS) == 1
        assert ids[0] == BOS
        assert ids.count(EOS) == 2


@pytest.mark.parametrize("adds", [("", ""), ("<s>", ""), ("", "</s>"), ("<s>", "</s>")])
@pytest.mark.parametrize(
    ("opens", "closes"), [("", ""), ("<s>", ""), ("", "</s>"), ("<s>", "</s>")]
)
def test_a_text_starts_and_ends_once(adds: tuple[str, str], opens: str, closes: str) -> None:
    """Whether the tokenizer, the text, both or neither write the special tokens."""
    tokenizer = made_by(tiny_tokenizer(), *adds)
    item = comparison(f"{opens}what is it? ", f"this{closes}", f"that one{closes}")
    for ids in whole(tree_of(Encoder(tokenizer=tokenizer, max_length=99), item)):
        assert ids.count(BOS) == (1 if "<s>" in (adds[0], opens) else 0)
        assert ids.count(EOS) == 1
        assert ids[-1] == EOS


def test_a_separator_ends_an_encoders_text() -> None:
    tokenizer = made_by(tiny_tokenizer(), "<s>", "</s>")
    tokenizer.eos_token = None
    tokenizer.sep_token = "</s>"
    item = comparison("a ", "b", "c")
    for ids in whole(tree_of(Encoder(tokenizer=tokenizer, max_length=99), item)):
        assert ids[-1] == EOS
        assert ids.count(EOS) == 1


# ---- the shared prefix

ids_lists = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=5)


def as_arrays(sequences: list[list[int]]) -> list[IntArray]:
    return [np.asarray(ids, dtype=np.int32) for ids in sequences]


@given(ids_lists)
def test_common_prefix_equals_the_naive_one(sequences: list[list[int]]) -> None:
    expected = 0
    if len(sequences) > 1:
        shortest = min(len(ids) for ids in sequences)
        while expected < shortest - 1 and len({ids[expected] for ids in sequences}) == 1:
            expected += 1
    assert common_prefix(as_arrays(sequences)) == expected


@given(ids_lists)
def test_a_tree_is_its_sequences(sequences: list[list[int]]) -> None:
    encoder = Encoder(tokenizer=SHARED, max_length=99)
    tree = grow_tree(encoder, comparison("", *["x"] * len(sequences)), as_arrays(sequences), 0)
    assert isinstance(tree, TokenTree)
    assert whole(tree) == sequences
    assert all(len(branch) > 0 for branch in tree.branches)
    assert tree.tokens == len(tree.prefix) + sum(len(b) for b in tree.branches)
    assert tree.lengths == tuple(map(len, sequences))


SHARED = tiny_tokenizer()
words = st.text("abethou ,.?!éñ漢\n", max_size=12)


@settings(deadline=None)
@given(words, st.lists(words, min_size=1, max_size=4))
def test_prefix_and_branch_are_the_whole_encoding(prompt: str, answers: list[str]) -> None:
    """Byte-pair merges reach across the end of the prompt; a prompt on its own would not see it."""
    encoder = Encoder(tokenizer=SHARED, max_length=10_000)
    expected = [SHARED(prompt + answer)["input_ids"] + [EOS] for answer in answers]
    assert whole(tree_of(encoder, comparison(prompt, *answers))) == expected


def test_a_merge_across_the_boundary_is_in_the_branches(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    alone = tokenizer("the qu")["input_ids"]
    joined = tokenizer("the quick")["input_ids"]
    assert joined[: len(alone)] != alone, "the example needs a merge"
    tree = tree_of(
        Encoder(tokenizer=tokenizer, max_length=99), comparison("the qu", "ick", "estion")
    )
    assert whole(tree)[0] == [*joined, EOS]


def test_one_response_the_beginning_of_another(tokenizer: PreTrainedTokenizerFast) -> None:
    tree = tree_of(
        Encoder(tokenizer=tokenizer, max_length=99), comparison("is ", "it", "it forty two")
    )
    assert all(len(branch) > 0 for branch in tree.branches)


def test_the_same_tokens_teach_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(tokenizer=tokenizer, max_length=99)
    assert why_untrainable(tree_of(encoder, comparison("a ", "b", "b"))) == IDENTICAL_TOKENS
    assert why_untrainable(tree_of(encoder, comparison("a ", "b", "b", "c"))) is None


# ---- lengths

LONG = chat("the quick brown fox jumps over the lazy dog " * 3, "no", "yes it is")


@pytest.mark.parametrize("truncation", ["drop", "error", "left"])
def test_what_fits_is_left_alone(tokenizer: PreTrainedTokenizerFast, truncation: Any) -> None:
    free = tree_of(Encoder(tokenizer=tokenizer, max_length=999), LONG)
    exact = Encoder(tokenizer=tokenizer, max_length=max(free.lengths), truncation=truncation)
    assert whole(tree_of(exact, LONG)) == whole(free)
    assert tree_of(exact, LONG).truncated == 0


def test_drop_names_the_reason(tokenizer: PreTrainedTokenizerFast) -> None:
    refused = refusal_of(Encoder(tokenizer=tokenizer, max_length=20), LONG)
    assert refused.reason == OVER_LENGTH
    assert "pairs.jsonl:1" in refused.detail


def test_error_stops_at_the_row(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(tokenizer=tokenizer, max_length=20, truncation="error")
    with pytest.raises(DataError, match=r"pairs\.jsonl:1: .* tokens\.max_length is 20"):
        encode(encoder, [LONG])


@pytest.mark.parametrize("max_length", [20, 24, 30])
def test_truncate_cuts_the_oldest_of_the_prompt(
    tokenizer: PreTrainedTokenizerFast, max_length: int
) -> None:
    free = tree_of(Encoder(tokenizer=tokenizer, max_length=999), LONG)
    tree = tree_of(Encoder(tokenizer=tokenizer, max_length=max_length, truncation="left"), LONG)
    assert max(tree.lengths) == max_length
    assert tree.truncated == max(free.lengths) - max_length
    assert [b.tolist() for b in tree.branches] == [b.tolist() for b in free.branches]
    assert tree.prefix[0] == BOS
    assert tree.prefix[1:].tolist() == free.prefix[1 + tree.truncated :].tolist()


def test_truncate_never_cuts_a_response(tokenizer: PreTrainedTokenizerFast) -> None:
    """Two responses that begin alike share more than the prompt; that part is not the prompt's."""
    same = "the answer is forty two because we counted twice " * 8
    item = chat("what is it?", f"{same} right", f"{same} wrong")
    free = tree_of(Encoder(tokenizer=tokenizer, max_length=999), item)
    longest = max(free.lengths)
    encoder = Encoder(tokenizer=tokenizer, max_length=longest - 3, truncation="left")
    assert tree_of(encoder, item).truncated == 3
    encoder = Encoder(tokenizer=tokenizer, max_length=longest - 30, truncation="left")
    assert longest - 30 > 8 + len(tokenizer("what is it?")["input_ids"])
    assert refusal_of(encoder, item).reason == OVER_LENGTH


def test_truncate_keeps_plain_responses_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    item = comparison("what is it? " * 4, "the answer: yes", "the answer: no")
    free = tree_of(Encoder(tokenizer=tokenizer, max_length=999), item)
    for cut in range(1, max(free.lengths)):
        (outcome,) = encode(
            Encoder(
                tokenizer=tokenizer,
                max_length=max(free.lengths) - cut,
                truncation="left",
            ),
            [item],
        )
        if isinstance(outcome, Skipped):
            assert cut > 12
            continue
        for ids, answer in zip(whole(outcome), item.responses, strict=True):
            assert str(answer) in tokenizer.decode(ids)


def test_truncate_cuts_the_prompt_of_a_single_response(tokenizer: PreTrainedTokenizerFast) -> None:
    """It shares no prefix with another response, and is cut as it would be beside one."""
    alone = replace(LONG, responses=LONG.responses[:1], grades=(4.0,), rated=True)
    free = tree_of(Encoder(tokenizer=tokenizer, max_length=999), alone)
    tree = tree_of(Encoder(tokenizer=tokenizer, max_length=24, truncation="left"), alone)
    assert tree.truncated > 0
    assert tree.lengths == (24,)
    assert whole(tree)[0][-6:] == whole(free)[0][-6:]


# ---- templates


def test_a_template_that_refuses_a_row_is_counted() -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}"
        "{{ raise_exception('no system turns') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    encoder = Encoder(tokenizer=tiny_tokenizer(chat_template=template), max_length=99)
    bad = comparison(says("system", "s"), says("assistant", "a"), says("assistant", "b"))
    good = chat("q", "a", "b")
    first, second = encode(encoder, [bad, good])
    assert isinstance(first, Skipped)
    assert first.reason == TEMPLATE_ERROR
    assert "no system turns" in first.detail
    assert "pairs.jsonl:1" in first.detail
    assert isinstance(second, TokenTree)
    assert second.index == 1


def test_content_that_a_template_cannot_join_is_counted(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    item = comparison(
        says("user", "q"),
        says("assistant", [{"type": "text", "text": "a"}]),
        says("assistant", "b"),
    )
    encoder = Encoder(tokenizer=tokenizer, max_length=99)
    assert refusal_of(encoder, item).reason == TEMPLATE_ERROR


def test_messages_without_a_template() -> None:
    encoder = Encoder(tokenizer=tiny_tokenizer(chat_template=None), max_length=99)
    with pytest.raises(ModelError, match=r"pairs\.jsonl:1 .* no chat template"):
        encode(encoder, [chat("a", "b", "c")])


def test_tools_and_arguments_of_each_row_reach_the_template() -> None:
    template = (
        "{{ mood }}{% for t in tools or [] %}<{{ t.function.name }}>{% endfor %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    tokenizer = tiny_tokenizer(chat_template=template)
    encoder = Encoder(tokenizer=tokenizer, max_length=99, chat_template_kwargs={"mood": "calm "})
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    items = [
        chat("q", "a", "b"),
        chat("q", "a", "b", tools=(tool,)),
        chat("q", "a", "b", mood="wild "),
    ]
    texts = [
        tokenizer.decode(whole(tree)[0])
        for tree in encode(encoder, items)
        if isinstance(tree, TokenTree)
    ]
    assert texts == ["calm qa", "calm <look>qa", "wild qa"]


def test_outcomes_keep_their_order_across_kinds_and_batches(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    items = [
        chat(f"q{i}", "a", "b") if i % 3 else comparison(f"q{i} ", "a", "b") for i in range(20)
    ]
    encoder = Encoder(tokenizer=tokenizer, max_length=99)
    together = encode(encoder, items, batch=7)
    for index, (item, outcome) in enumerate(zip(items, together, strict=True)):
        assert isinstance(outcome, TokenTree)
        assert outcome.index == index
        assert whole(outcome) == whole(tree_of(encoder, item))


# ---- LLaMA-Factory's rule


@pytest.mark.parametrize(
    ("prompt", "response", "kept"),
    [
        (300, 100, (300, 100)),  # fits
        (600, 100, (412, 100)),  # a short response: the prompt is cut
        (100, 600, (100, 412)),  # a short prompt: the response is cut
        (400, 400, (256, 256)),  # neither: in proportion
        (1000, 300, (394, 118)),
        (255, 512, (255, 257)),
        (256, 511, (171, 341)),
        (9999, 255, (257, 255)),
        (9999, 256, (500, 12)),
    ],
)
def test_llama_factorys_lengths(prompt: int, response: int, kept: tuple[int, int]) -> None:
    """By hand for a cutoff of 512, by the rule in ``infer_seqlen``."""
    assert proportional_lengths(prompt, response, 512) == kept


@given(st.integers(0, 9999), st.integers(1, 9999), st.integers(2, 4096))
def test_llama_factorys_lengths_fit_and_waste_little(
    prompt: int, response: int, cutoff: int
) -> None:
    kept_prompt, kept = proportional_lengths(prompt, response, cutoff)
    assert 0 <= kept_prompt <= prompt
    assert 0 <= kept <= response
    assert kept_prompt + kept <= cutoff
    if prompt + response <= cutoff:
        assert (kept_prompt, kept) == (prompt, response)
    else:
        assert kept_prompt + kept == cutoff


@pytest.mark.parametrize("max_length", range(4, 60, 5))
def test_llama_factorys_rule_keeps_heads_and_counts(
    tokenizer: PreTrainedTokenizerFast, max_length: int
) -> None:
    item = comparison(
        says("user", "the quick brown fox jumps over the lazy dog " * 2),
        says("assistant", "no"),
        says("assistant", "yes it is because we counted twice"),
    )
    free = tree_of(Encoder(tokenizer=tokenizer, max_length=999), item)
    prompt = len(tree_of(Encoder(tokenizer=tokenizer, max_length=999), alone(item)).branches[0])
    encoder = Encoder(tokenizer=tokenizer, max_length=max_length, truncation="proportional")
    (outcome,) = encode(encoder, [item])
    assert isinstance(outcome, TokenTree)
    longest = max(free.lengths) - prompt
    kept_prompt, kept = proportional_lengths(prompt, longest, max_length)
    for ours, theirs in zip(whole(outcome), whole(free), strict=True):
        assert ours == theirs[:kept_prompt] + theirs[prompt : prompt + kept]
    assert outcome.truncated == prompt - kept_prompt
    assert outcome.truncated_responses == sum(length - prompt > kept for length in free.lengths)


def alone(item: Comparison) -> Comparison:
    """The prompt with nothing after it."""
    return replace(item, responses=((),), grades=())
