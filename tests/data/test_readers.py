"""Readers: each format by example, recognition by columns and types, wrong values named."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.data.formats import readers
from plaudit.data.formats.readers import (
    READERS,
    SHARED_COLUMNS,
    StrengthUse,
    choose_reader,
    to_comparison,
)
from plaudit.data.reasons import EXPLANATIONS, why_untrainable
from plaudit.errors import DataError
from plaudit.recipe.objectives import LearnsFrom
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
    "alpaca": {
        "instruction": "Translate",
        "input": "gato",
        "chosen": "cat",
        "rejected": "dog",
        "history": [["Ready?", "Yes."]],
        "system": "Be brief.",
    },
    "alpaca_output": {"instruction": "Translate", "input": "gato", "output": ["cat", "dog"]},
    "alpaca_kto": {"instruction": "Translate", "input": "gato", "output": "cat", "kto_tag": True},
    "sharegpt_kto": {
        "conversations": [
            {"from": "human", "value": "2+2?"},
            {"from": "gpt", "value": "4"},
        ],
        "kto_tag": False,
    },
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello"},
            {"from": "human", "value": "2+2?"},
        ],
        "chosen": {"from": "gpt", "value": "4"},
        "rejected": {"from": "gpt", "value": "5"},
    },
    "ms_swift": {
        "messages": [user("Hi"), assistant("Hello")],
        "rejected_response": "No",
    },
    "ms_swift_messages": {
        "messages": [user("Hi"), assistant("Hello")],
        "rejected_messages": [user("Hi"), assistant("No")],
    },
    "question": {"system": "Be brief.", "question": "2+2?", "chosen": "4", "rejected": "5"},
    "ultrafeedback": {
        "source": "made_up",
        "instruction": "Name a prime",
        "models": ["a", "b", "c"],
        "completions": [
            {
                "model": "a",
                "response": "4",
                "overall_score": 1.0,
                "annotations": {"honesty": {"Rating": "1", "Rationale": "It is even."}},
            },
            {
                "model": "b",
                "response": "5",
                "overall_score": 8.5,
                "annotations": {"honesty": {"Rating": "5"}, "helpfulness": {"Rating": "N/A"}},
            },
            {"model": "c", "response": "6", "overall_score": 2.0},
        ],
    },
    "helpsteer2": {
        "split": "train",
        "prompt": "Explain rain",
        "response_1": "Water falls.",
        "response_2": "Vapour condenses, then falls.",
        "preference_strength": 2,
        "preference_statement": "Response 2 is better.",
        "all_preferences_unprocessed": [{"strength": -100}],
    },
    "helpsteer2_ratings": {
        "prompt": "Explain rain",
        "response": "Water falls.",
        "helpfulness": 3,
        "verbosity": 1,
    },
    "helpsteer3": {
        "domain": "code",
        "language": "python",
        "context": [user("Reverse a list")],
        "response1": "x[::-1]",
        "response2": "sort(x)",
        "overall_preference": -3,
        "individual_preference": [{"score": -3}],
    },
    "nectar": {
        "prompt": "\n\nHuman: Hi \n\nAssistant: ",
        "answers": [
            {"answer": "no", "model": "m2", "rank": 2.0},
            {"answer": "Hello!", "model": "m1", "rank": 1.0},
            {"answer": "?", "model": "m3", "rank": 3.0},
        ],
        "turns": 1,
        "source": ["demo", "other"],
        "good_natured": True,
    },
    "nemo": {
        "context": [user("2+2?")],
        "completions": [
            {"rank": 1, "completion": [assistant("5")]},
            {"rank": 0, "completion": [assistant("4")]},
        ],
        "task_name": "demo",
    },
    "pku_saferlhf": {
        "prompt": "Hi",
        "response_0": "Go away",
        "response_1": "Hello",
        "is_response_0_safe": True,
        "better_response_id": 1,
        "safer_response_id": 0,
    },
    "shp": {
        "history": "Why is bread brown?",
        "human_ref_A": "Sugars and proteins react.",
        "human_ref_B": "Dunno",
        "labels": 1,
        "score_ratio": 3.5,
    },
    "webgpt": {
        "question": {"full_text": "Why is bread brown?", "dataset": "eli5"},
        "answer_0": "Dunno",
        "answer_1": "Sugars and proteins react.",
        "score_0": -0.5,
        "score_1": 0.5,
    },
    "arena": {
        "model_a": "a",
        "model_b": "b",
        "winner": "model_b",
        "conversation_a": [user("Hi"), assistant("?")],
        "conversation_b": [user("Hi"), assistant("Hello")],
    },
    "rewardbench": {
        "prompt": "Name a fruit",
        "chosen": "Apple",
        "chosen_model": "A",
        "rejected": "Chair",
        "rejected_model": "B",
        "subset": "alpacaeval-easy",
        "id": 7,
    },
    "answer_lists": {
        "id": "12",
        "prompt": "Name a metal",
        "chosen": ["Iron"],
        "rejected": ["Wood", "Milk", "Paper"],
        "num_correct": 1,
        "subset": "Factuality",
    },
    "llmbar": {"input": "List two primes", "output_1": "2, 3", "output_2": "4, 6", "label": 1},
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
    alone = name in ("unpaired", "helpsteer2_ratings", "alpaca_kto", "sharegpt_kto")
    if alone:
        assert why_untrainable(parse(row), "ratings") is None
    assert why_untrainable(parse(row)) == ("single_response" if alone else None)


def test_every_reader_has_an_example() -> None:
    assert EXAMPLES.keys() == READERS.keys()


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


TURN = tuple[str, str]


@pytest.mark.parametrize(
    ("name", "prompt", "best"),
    [
        (
            "alpaca",
            [
                ("system", "Be brief."),
                ("user", "Ready?"),
                ("assistant", "Yes."),
                ("user", "Translate\ngato"),
            ],
            "cat",
        ),
        ("alpaca_output", [("user", "Translate\ngato")], "cat"),
        ("sharegpt", [("user", "Hi"), ("assistant", "Hello"), ("user", "2+2?")], "4"),
        ("ms_swift", [("user", "Hi")], "Hello"),
        ("ms_swift_messages", [("user", "Hi")], "Hello"),
        ("question", [("system", "Be brief."), ("user", "2+2?")], "4"),
        ("ultrafeedback", [("user", "Name a prime")], "5"),
        ("helpsteer2", [("user", "Explain rain")], "Vapour condenses, then falls."),
        ("helpsteer3", [("user", "Reverse a list")], "x[::-1]"),
        ("nectar", [("user", "Hi")], "Hello!"),
        ("nemo", [("user", "2+2?")], "4"),
        ("pku_saferlhf", [("user", "Hi")], "Hello"),
        ("shp", [("user", "Why is bread brown?")], "Sugars and proteins react."),
        ("webgpt", [("user", "Why is bread brown?")], "Sugars and proteins react."),
        ("arena", [("user", "Hi")], "Hello"),
        ("rewardbench", [("user", "Name a fruit")], "Apple"),
        ("answer_lists", [("user", "Name a metal")], "Iron"),
        ("llmbar", [("user", "List two primes")], "2, 3"),
    ],
)
def test_published_formats_give_prompt_and_best_response(
    name: str, prompt: list[TURN], best: str
) -> None:
    comparison = parse(EXAMPLES[name])
    assert said(comparison.prompt) == prompt
    order = sorted(zip(comparison.grades, comparison.responses, strict=True), key=lambda r: -r[0])
    assert said(order[0][1]) == [("assistant", best)]
    assert order[0][0] > order[1][0]


def test_rankings_keep_all_responses_and_their_order() -> None:
    assert parse(EXAMPLES["nectar"]).grades == (-2.0, -1.0, -3.0)
    assert parse(EXAMPLES["nectar"]).source == "demo, other"
    assert parse(EXAMPLES["ultrafeedback"]).grades == (1.0, 8.5, 2.0)
    assert parse(EXAMPLES["answer_lists"]).grades == (1.0, 0.0, 0.0, 0.0)
    unknown = EXAMPLES["ultrafeedback"]["completions"] + [{"response": "7"}]
    assert parse(EXAMPLES["ultrafeedback"] | {"completions": unknown}).grades == ()


@pytest.mark.parametrize(
    ("name", "change", "grades", "reason"),
    [
        ("helpsteer2", {"preference_strength": -1}, (1.0, 0.0), None),
        ("helpsteer2", {"preference_strength": 0}, (0.0, 0.0), "tie"),
        ("helpsteer2", {"preference_strength": None}, (), "unlabelled"),
        ("helpsteer3", {"overall_preference": 0}, (0.0, 0.0), "tie"),
        ("arena", {"winner": "tie (bothbad)"}, (0.0, 0.0), "tie"),
        ("webgpt", {"score_1": -0.5}, (0.0, 0.0), "tie"),
        ("llmbar", {"label": 2}, (0.0, 1.0), None),
        ("pku_saferlhf", {"better_response_id": 0}, (1.0, 0.0), None),
        ("shp", {"labels": 0}, (0.0, 1.0), None),
    ],
)
def test_signs_and_ties_are_kept(
    name: str, change: dict[str, Any], grades: tuple[float, ...], reason: str | None
) -> None:
    comparison = parse(EXAMPLES[name] | change)
    assert comparison.grades == grades
    assert why_untrainable(comparison) == reason


RATED_PAIR = {"attributes": {"clear": [4, None], "up to date/ü": [0.5, -1]}}
ATTRIBUTES = {"clear": (4.0, None), "up to date/ü": (0.5, -1.0)}


@pytest.mark.parametrize("name", READERS)
def test_every_format_may_have_attributes(name: str) -> None:
    """Of each response in the order of the row, in place of what the format itself reads."""
    plain = parse(EXAMPLES[name])
    count = len(plain.responses)
    given = {"clear": [*range(count)], "helpfulness": [None] * (count - 1) + [2], "no": [None]}
    given["no"] *= count
    comparison = parse(EXAMPLES[name] | {"attributes": given})
    assert comparison.attributes == {
        **plain.attributes,
        "clear": tuple(map(float, range(count))),
        "helpfulness": (*[None] * (count - 1), 2.0),
    }
    assert replace(comparison, attributes=plain.attributes) == plain
    assert parse(EXAMPLES[name] | {"attributes": json.dumps(given)}) == comparison


def test_attributes_of_a_pair_and_of_a_single_response() -> None:
    assert parse(EXAMPLES["explicit_text"] | RATED_PAIR).attributes == ATTRIBUTES
    single = EXAMPLES["unpaired"] | {"attributes": {"clear": 3, "long": None, "kind": [None]}}
    assert parse(single).attributes == {"clear": (3.0,)}
    for nothing in (None, {}, "", " ", {"clear": [None, None]}):
        assert parse(EXAMPLES["explicit_text"] | {"attributes": nothing}).attributes == {}


def test_the_ratings_of_helpsteer_and_ultrafeedback_are_attributes() -> None:
    comparison = parse(EXAMPLES["helpsteer2_ratings"] | {"correctness": None, "coherence": 2.5})
    assert comparison.attributes == {
        "helpfulness": (3.0,),
        "coherence": (2.5,),
        "verbosity": (1.0,),
    }
    assert (comparison.grades, comparison.metadata) == ((3.0,), {})
    comparison = parse(EXAMPLES["ultrafeedback"])
    assert comparison.attributes == {"honesty": (1.0, 5.0, None)}
    assert comparison.grades == (1.0, 8.5, 2.0)
    odd: list[dict[str, Any]] = [
        {"response": "4", "annotations": {"honesty": {"Rating": rating}, "tone": "x"}}
        for rating in ("4", 3, 2.5, "N/A", "inf", "", None, True, ["1"], 10**400)
    ]
    odd += [{"response": "4", "annotations": other} for other in (None, "N/A", [{"Rating": "1"}])]
    comparison = parse(EXAMPLES["ultrafeedback"] | {"completions": odd})
    assert comparison.attributes == {"honesty": (4.0, 3.0, 2.5, *[None] * 10)}
    assert "attribute is named 'a:b'" in complaint(
        {"instruction": "?", "completions": [{"response": "4", "annotations": {"a:b": {}}}]}
    )


PARTLY_RATED = {
    "attributes": {"clear": [4, None, 2], "short": [None, 1, None], "kind": [3, 3, 3]},
    "grades": None,
}


@pytest.mark.parametrize(
    ("change", "outputs", "order", "ties", "ratings"),
    [
        ({}, (), "unlabelled", "unlabelled", "unlabelled"),
        ({}, ("clear",), None, None, None),
        ({}, ("short",), "unlabelled", "unlabelled", None),
        ({}, ("kind",), "tie", None, None),
        ({}, ("short", "kind"), "tie", None, None),
        ({}, ("kind", "clear"), None, None, None),
        ({}, ("absent",), "unlabelled", "unlabelled", "unlabelled"),
        ({}, ("preference",), "unlabelled", "unlabelled", "unlabelled"),
        ({}, ("preference", "short"), "unlabelled", "unlabelled", None),
        ({"grades": [1, 0, 0]}, ("preference",), None, None, None),
        ({"grades": [1, 0, 0]}, ("short",), "unlabelled", "unlabelled", None),
        ({"grades": [1, 1, 1]}, ("preference", "short"), "tie", None, None),
        ({"grades": [1, 1, 1]}, ("preference", "clear"), None, None, None),
        ({"grades": [2, 1, 0], "attributes": {"preference": [5, 5, None]}}, ("preference",),
         "tie", None, None),
        ({"responses": ["a"], "attributes": {"clear": 4}}, ("clear",),
         "single_response", "single_response", None),
        ({"responses": ["a"], "attributes": {"clear": 4}}, ("short",),
         "single_response", "single_response", "unlabelled"),
        ({"responses": ["a", "a", "a"]}, ("clear",), *["identical_responses"] * 3),
        ({"responses": ["a", "", "b"]}, ("clear",), *["empty_response"] * 3),
    ],
)  # fmt: skip
def test_which_outputs_can_learn_from_a_row(
    change: dict[str, Any],
    outputs: tuple[str, ...],
    order: str | None,
    ties: str | None,
    ratings: str | None,
) -> None:
    """One output with a label is enough; of an order, two different numbers."""
    comparison = parse(EXAMPLES["ranked"] | PARTLY_RATED | change)
    learned: tuple[LearnsFrom, ...] = ("order", "order_and_ties", "ratings")
    found = tuple(why_untrainable(comparison, one, outputs) for one in learned)
    assert found == (order, ties, ratings)


def test_the_preference_of_a_pair_is_learned_beside_ratings() -> None:
    """A pair is no rating, and under an objective of ratings it says which is better."""
    pair = parse(EXAMPLES["explicit_text"])
    every: tuple[LearnsFrom, ...] = ("order", "order_and_ties", "ratings")
    for learns_from in every:
        assert why_untrainable(pair, learns_from, ("preference",)) is None
        assert why_untrainable(pair, learns_from, ("clear",)) == "unlabelled"


def test_a_helpsteer2_prompt_of_several_turns() -> None:
    prompt = "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nAnd?"
    assert said(parse(EXAMPLES["helpsteer2"] | {"prompt": prompt}).prompt) == [
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "And?"),
    ]


def test_ms_swift_rejects_a_text_some_turns_or_a_conversation() -> None:
    call = assistant(None, tool_calls=[{"name": "clock"}])
    whole = [user("Time?"), call, {"role": "tool", "content": "9"}, assistant("Nine.")]
    row = {"messages": whole, "rejected_response": "No."}
    assert len(parse(row).prompt) == 3
    some = parse(row | {"rejected_response": [assistant("No.")]})
    assert [len(turns) for turns in (some.prompt, *some.responses)] == [1, 3, 1]
    other = parse(row | {"rejected_response": [user("Time?"), assistant("No.")]})
    assert other == some
    assert "does not end with an assistant turn" in complaint(row | {"messages": [user("Hi")]})


def human(text: str, name: str = "human") -> dict[str, str]:
    return {"from": name, "value": text}


HEARD, RULE = human("9", "observation"), human("Be brief.", "system")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"conversations": [human("Hi")]}, None),
        ({"conversations": [RULE, human("Hi")]}, None),
        (
            {
                "conversations": [
                    human("Hi"),
                    human("9", "function_call"),
                    human("9", "observation"),
                ]
            },
            None,
        ),
        ({"conversations": []}, "broken_turns"),
        ({"conversations": [human("Hi", "gpt")]}, "broken_turns"),
        ({"conversations": [human("Hi"), human("Hello", "gpt")]}, "broken_turns"),
        ({"conversations": [human("Hi"), human("Hello")]}, "broken_turns"),
        ({"chosen": human("4", "human")}, "broken_turns"),
        (
            {"conversations": [RULE, RULE, human("Hi")]},
            "broken_turns",
        ),
    ],
)
def test_llama_factorys_rule_of_turns(change: dict[str, Any], reason: str | None) -> None:
    assert why_untrainable(parse(EXAMPLES["sharegpt"] | change)) == reason


def test_sharegpt_calls_of_functions_become_tool_calls() -> None:
    call = '{"name": "clock", "arguments": {"zone": "UTC"}}'
    turns = [human("Time?"), human(call, "function_call"), HEARD]
    row = EXAMPLES["sharegpt"] | {"conversations": turns, "system": "Be brief."}
    prompt = parse(row).prompt
    assert [turn.role for turn in prompt if isinstance(turn, Message)] == [
        "system",
        "user",
        "assistant",
        "tool",
    ]
    called = prompt[2]
    assert isinstance(called, Message)
    (made,) = called.extra["tool_calls"]
    assert made["function"] == {"name": "clock", "arguments": {"zone": "UTC"}}


@pytest.mark.parametrize(
    ("name", "change", "graded", "margin", "weight"),
    [
        ("helpsteer2", {}, "margin", 2.0, 1.0),
        ("helpsteer2", {}, "weight", None, 2.0),
        ("helpsteer2", {"weight": 0.5, "margin": 7}, "weight", 7.0, 1.0),
        ("helpsteer2", {"margin": 7}, "margin", 7.0, 1.0),
        ("helpsteer2", {"preference_strength": 0}, "weight", None, 1.0),
        ("helpsteer2", {}, "ignore", None, 1.0),
        ("helpsteer3", {}, "margin", 3.0, 1.0),
        ("webgpt", {}, "margin", 1.0, 1.0),
        ("nemo", {}, "margin", None, 1.0),
        ("explicit_text", {"score_chosen": 8.5, "score_rejected": 3}, "margin", 5.5, 1.0),
        ("ranked", {"responses": ["a", "b"], "grades": [1, 4]}, "margin", 3.0, 1.0),
    ],
)
def test_how_clear_a_preference_is_becomes_margin_or_weight(
    name: str, change: dict[str, Any], graded: StrengthUse, margin: float | None, weight: float
) -> None:
    row = EXAMPLES[name] | change
    reader = choose_reader(row, where=WHERE)
    made = to_comparison(reader, row, number=1, where=WHERE, source="a", strength_use=graded)
    assert (made.margin, made.weight) == (margin, weight)


@pytest.mark.parametrize(
    ("change", "use", "soft_label"),
    [
        ({}, "soft_label", 1.0),
        ({}, "ignore", None),
        ({}, "margin", None),
        ({"individual_preference": [{"score": -3}, {"score": 1}]}, "soft_label", 0.5),
        ({"individual_preference": [{"score": -1}, {"score": 0}]}, "soft_label", 0.75),
        (
            {
                "overall_preference": 2,
                "individual_preference": [{"score": 3}, {"score": 2}, {"score": -1}],
            },
            "soft_label",
            2 / 3,
        ),
        ({"individual_preference": [{"score": -2}, {"score": None}]}, "soft_label", 1.0),
        ({"individual_preference": [{"score": None}]}, "soft_label", None),
        ({"individual_preference": None}, "soft_label", None),
        ({"overall_preference": 0}, "soft_label", None),
        ({"soft_label": 0.9}, "soft_label", 0.9),
    ],
)
def test_the_share_of_annotators_who_agree_becomes_the_soft_label(
    change: dict[str, Any], use: StrengthUse, soft_label: float | None
) -> None:
    row = EXAMPLES["helpsteer3"] | change
    made = to_comparison(
        READERS["helpsteer3"], row, number=1, where=WHERE, source="a", strength_use=use
    )
    assert made.soft_label == (soft_label if soft_label is None else pytest.approx(soft_label))
    assert made.weight == 1.0


def test_preference_strength_is_for_pairs() -> None:
    row = EXAMPLES["ranked"]
    with pytest.raises(
        DataError, match="the row has 3 responses, but `preference_strength: margin` needs pairs"
    ):
        to_comparison(
            READERS["ranked"], row, number=1, where=WHERE, source="a", strength_use="margin"
        )


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
    response = parse(row).responses[0]
    assert isinstance(response, tuple)
    (message,) = response
    assert message.content is None
    assert message.extra == {"tool_calls": [{"name": "clock"}], "name": "bot"}
    assert why_untrainable(parse(row)) is None


PARTS: list[Any] = [{"type": "text", "text": "Capital"}, {"type": "input_text", "text": "of Peru?"}]


def test_content_parts_of_text_are_their_text() -> None:
    row = EXAMPLES["explicit_conversational"]
    parts = parse(row | {"prompt": [{"role": "user", "content": PARTS}]})
    assert said(parts.prompt) == [("user", "Capital\nof Peru?")]
    assert parts == parse(row | {"prompt": [user("Capital\nof Peru?")]})
    # A table fills each part with the keys of all, and a part may be a text or have no type.
    filled = [{"type": "text", "text": "a", "image_url": None}, {"type": None, "text": "b"}, "c"]
    assert said(parse(row | {"prompt": [{"role": "user", "content": filled}]}).prompt) == [
        ("user", "a\nb\nc")
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt": [{"role": "user", "content": [*PARTS, {"type": "image"}]}]}, "media"),
        ({"chosen": [{"role": "assistant", "content": [{"type": "input_audio"}]}]}, "media"),
        ({"chosen": [{"role": "assistant", "content": [{"type": "video_url"}]}]}, "media"),
        ({"images": ["a.png"]}, "media"),
        ({"image": {"bytes": b"", "path": "a.png"}}, "media"),
        ({"audio": "a.wav"}, "media"),
        ({"videos": [], "images": None, "audio": "", "image": 3, "video": False}, None),
    ],
)
def test_images_audio_and_video_are_named(change: dict[str, Any], reason: str | None) -> None:
    comparison = parse(EXAMPLES["explicit_conversational"] | change)
    assert why_untrainable(comparison) == comparison.unusable == reason
    assert not {"images", "image", "audio", "videos", "video"} & comparison.metadata.keys()


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
            "rejected[0].content is null; expected text (null is allowed only beside tool_calls)",
        ),
        (
            "explicit_conversational",
            {"rejected": [{"role": "assistant", "content": {"text": "a"}}]},
            "rejected[0].content is an object; expected text",
        ),
        (
            "explicit_conversational",
            {"rejected": [{"role": "assistant", "content": [*PARTS, {"type": "hologram"}]}]},
            "rejected[0].content[2] is a content part of type 'hologram'; expected one of text,",
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
        ("explicit_text", {"margin": True}, "margin is a boolean; expected a number"),
        ("explicit_text", {"margin": float("nan")}, "margin is NaN or infinite"),
        ("explicit_text", {"margin": 10**400}, "margin is NaN or infinite"),
        ("explicit_text", {"weight": 0}, "weight is 0 or less"),
        ("explicit_text", {"id": [1]}, "id is a list; expected text or a number"),
        ("explicit_text", {"attributes": [1, 2]}, "attributes is a list; expected an object, or"),
        ("explicit_text", {"attributes": 3}, "attributes is a number; expected an object"),
        ("explicit_text", {"attributes": "good"}, "attributes is invalid JSON; expected an object"),
        (
            "explicit_text",
            {"attributes": {"a": [1]}},
            "attributes.a is a list of length 1; expected length 2: one number, or null, per",
        ),
        (
            "explicit_text",
            {"attributes": {"a": 1}},
            "attributes.a is a number; expected a list of 2 numbers, one per response",
        ),
        ("unpaired", {"attributes": {"a": [1, 2]}}, "is a list of length 2; expected length 1"),
        ("unpaired", {"attributes": {"a": "good"}}, "attributes.a is text; expected a number"),
        ("unpaired", {"attributes": {"a": True}}, "attributes.a is a boolean; expected a number"),
        ("explicit_text", {"attributes": {"a": [1, "2"]}}, "attributes.a[1] is text; expected a"),
        ("explicit_text", {"attributes": {"a": [True, 1]}}, "attributes.a[0] is a boolean"),
        ("explicit_text", {"attributes": {"a": [math.nan, 1]}}, "attributes.a[0] is NaN or inf"),
        ("explicit_text", {"attributes": {"a": [1, -math.inf]}}, "attributes.a[1] is NaN or inf"),
        (
            "explicit_text",
            {"attributes": {"": [1, 2]}},
            "an attribute is named ''; expected letters",
        ),
        ("explicit_text", {"attributes": {" a": [1, 2]}}, "an attribute is named ' a'"),
        ("explicit_text", {"attributes": {"a\nb": [1, 2]}}, "an attribute is named 'a\\nb'"),
        ("explicit_text", {"attributes": {"a,b": [1, 2]}}, "an attribute is named 'a,b'"),
        (
            "explicit_text",
            {"attributes": {"x:" * 99: [1, 2]}},
            "x:'; expected letters, digits, _, -, . and /",
        ),
        ("helpsteer2_ratings", {"verbosity": "long"}, "verbosity is text; expected a number"),
        ("explicit_text", {"tools": "{"}, "tools is invalid JSON"),
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
    assert "question: chosen, rejected" not in message
    assert "webgpt: question, answer_0" in message
    assert all(reader.name in message for reader in READERS.values())
    assert "`format:`" in message
    assert "(none)" in complaint({})


def test_right_columns_with_wrong_values_say_which_value() -> None:
    message = complaint({"prompt": "a", "chosen": 5, "rejected": "b"})
    assert "no format matches: as explicit_text, chosen is a number; expected text" in message
    mixed = complaint({"prompt": "a", "chosen": [assistant("b")], "rejected": [assistant("c")]})
    assert "as explicit_conversational, prompt is text; expected a list of messages" in mixed


def test_ambiguous_columns_ask_for_the_format() -> None:
    row = EXAMPLES["explicit_text"] | {"responses": ["a", "b"]}
    assert "explicit_text and ranked; choose one, for example `format: explicit_text`" in complaint(
        row
    )
    assert parse(row, "ranked").responses == ("a", "b")


def test_an_unknown_format_suggests_the_nearest() -> None:
    assert complaint({}, "explict_text") == (
        "unknown format 'explict_text'; did you mean explicit_text?"
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
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["\n\nHuman:", "<extra_id_1>User\n", "x" * 100_000, "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
COLUMNS = sorted(
    {column for reader in READERS.values() for column in (*reader.columns, *reader.optional)}
)


def damaged(value: Any) -> st.SearchStrategy[Any]:
    """The value, with a part of it somewhere replaced by anything."""
    if isinstance(value, dict) and value:
        return st.sampled_from(sorted(value)).flatmap(
            lambda key: damaged(value[key]).map(lambda new: {**value, key: new}) | JSON
        )
    if isinstance(value, list) and value:
        return st.integers(0, len(value) - 1).flatmap(
            lambda n: damaged(value[n]).map(lambda new: [*value[:n], new, *value[n + 1 :]]) | JSON
        )
    return JSON


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_row_gives_a_comparison_or_a_data_error(name: str, data: st.DataObject) -> None:
    example = EXAMPLES[name]
    more = st.dictionaries(st.sampled_from([*COLUMNS, *SHARED_COLUMNS]), JSON, max_size=3)
    row = data.draw(st.just(example) | damaged(example))
    row = {**(row if isinstance(row, dict) else {}), **data.draw(more)}
    for given_name in (name, None):
        outcome = outcome_of(row, given_name)
        if isinstance(outcome, str):
            assert outcome.startswith(f"{WHERE}: ")
        else:
            assert len(outcome.responses) >= 1
            assert len(outcome.grades) in (0, len(outcome.responses))
            assert why_untrainable(outcome) in {None, *EXPLANATIONS}
            assert all(math.isfinite(grade) for grade in outcome.grades)
            for numbers in outcome.attributes.values():
                assert len(numbers) == len(outcome.responses)
                assert all(number is None or math.isfinite(number) for number in numbers)
