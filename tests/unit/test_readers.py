"""Readers: each format by example, recognition by columns and types, wrong values named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.data import readers
from plaudit.data.readers import READERS, choose_reader, to_comparison
from plaudit.data.reasons import EXPLANATIONS, why_untrainable
from plaudit.errors import DataError
from plaudit.types import Comparison, Message, Turns


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str | None, **extra: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **extra}


EXAMPLES: dict[str, dict[str, Any]] = {
    "explicit_text": {"prompt": "2+3=", "chosen": "5", "rejected": "6"},
    "explicit_conversational": {
        "prompt": [user("Capital of Peru?")],
        "chosen": [assistant("Lima.")],
        "rejected": [assistant("Cusco.")],
    },
    "implicit_text": {"chosen": "Sky is blue.", "rejected": "Sky is blown."},
    "implicit_conversational": {
        "chosen": [user("Hi"), assistant("Hello")],
        "rejected": [user("Hi"), assistant("?")],
    },
    "hh_rlhf": {
        "chosen": "\n\nHuman: Is ice cold?\n\nAssistant: Yes, it is.",
        "rejected": "\n\nHuman: Is ice cold?\n\nAssistant: No.",
    },
    "ranked": {"prompt": "Name a prime", "responses": ["4", "5", "6"], "grades": [0, 2, 0.5]},
    "unpaired": {"prompt": "Hi", "completion": "Hello", "label": True},
}

WHERE = "pairs.jsonl:3"


def parse(row: dict[str, Any], format: str | None = None) -> Comparison:  # noqa: A002
    reader = choose_reader(row, where=WHERE, name=format)
    return to_comparison(reader, row, number=3, where=WHERE, source="pairs")


def complaint(row: dict[str, Any], format: str | None = None) -> str:  # noqa: A002
    with pytest.raises(DataError) as raised:
        parse(row, format)
    message = str(raised.value)
    assert "\n" not in message
    return message


def outcome_of(row: dict[str, Any], format: str | None) -> Comparison | str:  # noqa: A002
    try:
        return parse(row, format)
    except DataError as error:
        return str(error)


def said(turns: Turns) -> list[tuple[str, Any]] | str:
    return turns if isinstance(turns, str) else [(turn.role, turn.content) for turn in turns]


@pytest.mark.parametrize("name", READERS)
def test_every_reader_recognises_its_example_and_no_other_does(name: str) -> None:
    row = EXAMPLES[name]
    assert choose_reader(row, where=WHERE).name == name
    assert choose_reader(row | {"extra": 1, "margin": None}, where=WHERE).name == name
    assert parse(row) == parse(row, format=name)
    assert why_untrainable(parse(row)) == ("single_response" if name == "unpaired" else None)


def test_explicit_shapes() -> None:
    text = parse(EXAMPLES["explicit_text"])
    assert (text.prompt, text.responses, text.grades) == ("2+3=", ("5", "6"), (1.0, 0.0))
    chat = parse(EXAMPLES["explicit_conversational"])
    assert chat.prompt == (Message(role="user", content="Capital of Peru?"),)
    assert chat.responses[1] == (Message(role="assistant", content="Cusco."),)


def test_a_text_after_messages_is_one_assistant_turn() -> None:
    row = {"prompt": [user("Capital of Peru?")], "chosen": "Lima.", "rejected": "Cusco."}
    assert parse(row).responses == parse(EXAMPLES["explicit_conversational"]).responses


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The capital is Paris", "The capital is Panama", "The capital is "),
        ("2+3=5", "2+3=6", ""),
        ("Q: x\nA: yes", "Q: x\nA: yes, indeed", "Q: x\nA: "),
        ("one two", "one two three", "one "),
        ("one two ", "one two three", "one "),
        ("same words", "same words", "same "),
        ("a b", "c d", ""),
        ("", "something", ""),
    ],
)
def test_the_prompt_of_implicit_texts_ends_at_a_white_space(
    chosen: str, rejected: str, prompt: str
) -> None:
    comparison = parse({"chosen": chosen, "rejected": rejected})
    assert comparison.prompt == prompt
    assert tuple(prompt + str(response) for response in comparison.responses) == (chosen, rejected)


@given(st.text("ab \n", max_size=12), st.text("ab \n", max_size=8), st.text("ab \n", max_size=8))
def test_implicit_text_loses_nothing_and_cuts_no_word(shared: str, one: str, two: str) -> None:
    chosen, rejected = shared + one, shared + two
    comparison = parse({"chosen": chosen, "rejected": rejected})
    prompt = comparison.prompt
    assert isinstance(prompt, str)
    assert [prompt + str(response) for response in comparison.responses] == [chosen, rejected]
    assert not prompt or prompt[-1].isspace()
    for text, response in zip((chosen, rejected), comparison.responses, strict=True):
        assert bool(text.strip()) == bool(str(response).strip())


TURNS = st.lists(
    st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(["user", "assistant"]),
        st.sampled_from(["a", "b"]),
    ),
    min_size=1,
    max_size=5,
)


@given(TURNS, TURNS)
def test_implicit_conversations_share_all_they_can(
    chosen: list[dict[str, Any]], rejected: list[dict[str, Any]]
) -> None:
    comparison = parse({"chosen": chosen, "rejected": rejected})
    prompt = comparison.prompt
    assert isinstance(prompt, tuple)
    for turns, response in zip((chosen, rejected), comparison.responses, strict=True):
        assert isinstance(response, tuple)
        assert len(response) >= 1
        assert [turn.as_dict() for turn in prompt + response] == turns
    one, two = comparison.responses
    assert one[0] != two[0] or 1 in (len(one), len(two))


def test_a_prompt_text_that_repeats_the_first_turn_is_no_other_format() -> None:
    row = EXAMPLES["implicit_conversational"] | {"prompt": "Hi", "score_chosen": 8.5}
    comparison = parse(row)
    assert said(comparison.prompt) == [("user", "Hi")]
    assert comparison.metadata == {"score_chosen": 8.5}


def test_hh_dialogues_become_messages() -> None:
    head = "\n\nHuman: Hi\n\nHuman: Are you there?\n\nAssistant: Yes.\n\nHuman: Good: so?"
    comparison = parse(
        {"chosen": head + "\n\nAssistant: Fine.\n", "rejected": head + "\n\nAssistant:"}
    )
    assert said(comparison.prompt) == [
        ("user", "Hi\n\nAre you there?"),
        ("assistant", "Yes."),
        ("user", "Good: so?"),
    ]
    assert [said(response) for response in comparison.responses] == [
        [("assistant", "Fine.")],
        [("assistant", "")],
    ]
    assert why_untrainable(comparison) == "empty_response"


def test_hh_dialogues_with_different_prompts_are_named_and_still_scorable() -> None:
    shared = "\n\nHuman: Hi\n\nAssistant: Hello"
    row = {"chosen": f"{shared}\n\nHuman: A?\n\nAssistant: a", "rejected": shared}
    comparison = parse(row)
    assert comparison.prompt == ()
    assert [said(response) for response in comparison.responses] == [
        [("user", "Hi"), ("assistant", "Hello"), ("user", "A?"), ("assistant", "a")],
        [("user", "Hi"), ("assistant", "Hello")],
    ]
    assert why_untrainable(comparison) == "prompt_mismatch"


def test_an_hh_dialogue_nobody_answers_has_an_empty_response() -> None:
    text = "\n\nHuman: Anyone?"
    comparison = parse({"chosen": text, "rejected": text})
    assert said(comparison.prompt) == [("user", "Anyone?")]
    assert why_untrainable(comparison) == "empty_response"


def test_ranked_and_unpaired() -> None:
    ranked = parse(EXAMPLES["ranked"])
    assert (ranked.responses, ranked.grades) == (("4", "5", "6"), (0.0, 2.0, 0.5))
    chat = parse({"prompt": [user("Hi")], "responses": ["a", [assistant("b")]]})
    assert [said(response) for response in chat.responses] == [
        [("assistant", "a")],
        [("assistant", "b")],
    ]
    assert chat.grades == ()
    assert parse(EXAMPLES["unpaired"]).grades == (1.0,)
    assert parse({"prompt": "Hi", "completion": "Hello"}).grades == ()


def test_the_columns_all_formats_share() -> None:
    row = EXAMPLES["explicit_text"] | {
        "id": 17,
        "source": "forum",
        "margin": 2,
        "weight": 0.5,
        "tools": '[{"name": "clock"}]',
        "chat_template_kwargs": {"enable_thinking": False},
        "subset": "easy",
        "year": 1999,
        "clean": True,
        "nested": {"a": 1},
        "nothing": None,
    }
    comparison = parse(row)
    assert (comparison.id, comparison.source, comparison.where) == ("17", "forum", WHERE)
    assert (comparison.margin, comparison.weight) == (2.0, 0.5)
    assert comparison.tools == ({"name": "clock"},)
    assert comparison.chat_template_kwargs == {"enable_thinking": False}
    assert comparison.metadata == {"subset": "easy", "year": 1999, "clean": True}
    plain = parse(EXAMPLES["explicit_text"] | {"tools": [], "chat_template_kwargs": ""})
    assert (plain.id, plain.source, plain.margin, plain.weight) == ("pairs:3", "pairs", None, 1.0)
    assert plain.tools is None
    assert plain.chat_template_kwargs == {}


def test_messages_keep_what_else_they_carry() -> None:
    call = assistant(None, tool_calls=[{"name": "clock"}], name="bot", thinking=None)
    row = EXAMPLES["explicit_conversational"] | {"chosen": [call]}
    (message,) = parse(row).responses[0]
    assert isinstance(message, Message)
    assert message.content is None
    assert message.extra == {"tool_calls": [{"name": "clock"}], "name": "bot"}
    assert why_untrainable(parse(row)) is None


@pytest.mark.parametrize(
    ("format", "change", "expected"),
    [
        ("explicit_text", {"chosen": 5}, "chosen is a number; expected text"),
        ("explicit_text", {"chosen": None}, "chosen is null; expected text"),
        ("explicit_conversational", {"prompt": "x"}, "prompt is text; expected a list of messages"),
        ("explicit_conversational", {"chosen": ["a"]}, "chosen[0] is text; expected a message"),
        (
            "explicit_conversational",
            {"chosen": [{"from": "gpt", "value": "a"}]},
            "chosen[0] has no role (found: from, value)",
        ),
        (
            "explicit_conversational",
            {"rejected": [assistant(None)]},
            "rejected[0].content is null; expected text (null only beside tool_calls)",
        ),
        ("implicit_text", {"chosen": ["a"]}, "chosen is a list; expected text"),
        ("hh_rlhf", {"chosen": "Hello"}, "chosen does not start with '\\n\\nHuman:'"),
        ("ranked", {"responses": "a"}, "responses is text; expected a list"),
        ("ranked", {"responses": []}, "expected at least one response"),
        ("ranked", {"responses": ["a", 3, "b"]}, "responses[1] is a number; expected text"),
        ("ranked", {"grades": [1, 2]}, "there are 3 responses but 2 grades"),
        ("ranked", {"grades": [1, 2, "x"]}, "grades[2] is text; expected a number"),
        ("ranked", {"grades": 3}, "grades is a number; expected a list"),
        ("unpaired", {"label": "good"}, "label is text; expected a number"),
        ("unpaired", {"completion": [assistant("a")]}, "completion is a list; expected text"),
        ("explicit_text", {"margin": "big"}, "margin is text; expected a number"),
        ("explicit_text", {"margin": True}, "margin is true or false; expected a number"),
        ("explicit_text", {"margin": float("nan")}, "margin is no finite number"),
        ("explicit_text", {"margin": 10**400}, "margin is no finite number"),
        ("explicit_text", {"weight": 0}, "weight is 0 or less"),
        ("explicit_text", {"id": [1]}, "id is a list; expected text or a number"),
        ("explicit_text", {"tools": "{"}, "tools is text that is not JSON"),
        ("explicit_text", {"tools": {"a": 1}}, "tools is an object; expected a list"),
        ("explicit_text", {"tools": ["a"]}, "tools[0] is text; expected an object"),
        ("explicit_text", {"chat_template_kwargs": "[]"}, "is a list; expected an object"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_its_place(
    format: str,  # noqa: A002
    change: dict[str, Any],
    expected: str,
) -> None:
    message = complaint(EXAMPLES[format] | change, format)
    assert message.startswith(f"{WHERE}: ")
    assert expected in message


def test_a_missing_column_is_named_with_those_found() -> None:
    assert complaint({"prompt": "a", "chosen": "b"}, "explicit_text") == (
        f"{WHERE}: the column rejected is missing (found: prompt, chosen)."
    )


def test_unknown_columns_name_those_found_and_those_expected() -> None:
    message = complaint({"question": "a", "answer": "b"})
    assert message.startswith(f"{WHERE}: no format has the columns question, answer; expected (")
    for reader in READERS.values():
        assert f"{reader.name}: {', '.join(reader.columns)}" in message
    assert "`format:`" in message
    assert "(none)" in complaint({})


def test_right_columns_with_wrong_values_say_which_value() -> None:
    message = complaint({"prompt": "a", "chosen": 5, "rejected": "b"})
    assert "no format fits: as explicit_text, chosen is a number; expected text" in message
    mixed = complaint({"prompt": "a", "chosen": [assistant("b")], "rejected": [assistant("c")]})
    assert "as explicit_conversational, prompt is text; expected a list of messages" in mixed


def test_ambiguous_columns_ask_for_the_format() -> None:
    row = EXAMPLES["explicit_text"] | {"responses": ["a", "b"]}
    assert "fit explicit_text and ranked; choose one with `format: explicit_text`" in complaint(row)
    assert parse(row, "ranked").responses == ("a", "b")


def test_an_unknown_format_suggests_the_nearest() -> None:
    assert complaint({}, "explict_text") == (
        "there is no format 'explict_text'; did you mean explicit_text?"
    )
    assert "expected one of explicit_text, " in complaint({}, "parquet")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "chosen": " \n", "rejected": "b"}, "empty_response"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "identical_responses"),
        ({"prompt": [user("a")], "chosen": [], "rejected": "b"}, "empty_response"),
        ({"prompt": [user("a")], "chosen": "", "rejected": "b"}, "empty_response"),
        ({"prompt": "a", "responses": ["b", "c"], "grades": [2, 2.0]}, "tie"),
        ({"prompt": "a", "responses": ["b", "c"]}, "unlabelled"),
        ({"prompt": "a", "responses": ["b", "b"], "grades": [1, 0]}, "identical_responses"),
        ({"prompt": "a", "responses": ["b", ""], "grades": [1, 0]}, "empty_response"),
        ({"prompt": "a", "completion": "b", "label": 1}, "single_response"),
        (
            {
                "chosen": [user("a"), assistant("x")],
                "rejected": [user("b"), assistant("y")],
            },
            "prompt_mismatch",
        ),
        ({"chosen": [assistant("x")], "rejected": [assistant("y")]}, None),
    ],
)
def test_why_a_comparison_cannot_train(row: dict[str, Any], reason: str | None) -> None:
    assert why_untrainable(parse(row)) == reason
    assert reason is None or reason in EXPLANATIONS


def test_the_group_is_the_prompt_and_nothing_else() -> None:
    row = EXAMPLES["explicit_conversational"]
    group = parse(row).group
    assert len(group) == 16
    assert int(group, 16) >= 0
    same = row | {"chosen": [assistant("x")], "tools": [{"name": "t"}], "id": "other"}
    assert parse(same).group == group
    assert parse(row | {"prompt": [user(" Capital of Peru?\n")]}).group == group
    assert parse(row | {"prompt": [assistant("Capital of Peru?")]}).group != group
    assert parse(row | {"prompt": [user("Capital of Chile?")]}).group != group
    whole = {
        "chosen": row["prompt"] + row["chosen"],
        "rejected": row["prompt"] + row["rejected"],
    }
    assert parse(whole).group == group


def test_rows_without_a_prompt_are_grouped_by_their_responses() -> None:
    one = parse({"chosen": "a", "rejected": "b"}).group
    assert one == parse({"chosen": "b", "rejected": "a"}).group
    assert one != parse({"chosen": "a", "rejected": "c"}).group


def test_the_group_is_stable_between_versions() -> None:
    # Changing it moves rows between the sides of existing splits. The values are those of
    # sha256sum for the bytes "2+3=" (with quotes) and [["user", "Capital of Peru?"]].
    assert parse(EXAMPLES["explicit_text"]).group == "5cb8b8fb433b8f6b"
    assert parse(EXAMPLES["explicit_conversational"]).group == "f62570d53eb267b5"


def test_the_reader_of_the_how_to_guide_works(monkeypatch: pytest.MonkeyPatch) -> None:
    guide = Path(__file__).parents[2] / "docs" / "how-to" / "add-a-reader.md"
    (row,) = re.findall(r"```json\n(.*?)```", guide.read_text("utf-8"), re.DOTALL)
    function, record = re.findall(r"```python\n(.*?)```", guide.read_text("utf-8"), re.DOTALL)
    names = dict(vars(readers))
    exec(function, names)
    (reader,) = eval(f"[{record}]", names)
    monkeypatch.setitem(READERS, reader.name, reader)
    comparison = parse(json.loads(row))
    assert (comparison.prompt, comparison.responses) == ("List two primes", ("2, 3", "4, 6"))
    assert (comparison.grades, comparison.metadata) == ((1.0, 0.0), {})
    assert "better is neither 1 nor 2" in complaint(json.loads(row) | {"better": 3})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
COLUMNS = ["prompt", "chosen", "rejected", "responses", "grades", "completion", "label"]


@given(
    st.sampled_from(sorted(READERS)),
    st.dictionaries(st.sampled_from([*COLUMNS, "margin", "tools", "id", "weight"]), JSON),
)
def test_any_row_gives_a_comparison_or_a_data_error(name: str, changes: dict[str, Any]) -> None:
    row = EXAMPLES[name] | changes
    for given_name in (name, None):
        outcome = outcome_of(row, given_name)
        if isinstance(outcome, str):
            assert outcome.startswith(f"{WHERE}: ")
        else:
            assert len(outcome.responses) >= 1
            assert len(outcome.grades) in (0, len(outcome.responses))
            assert why_untrainable(outcome) in {None, *EXPLANATIONS}
