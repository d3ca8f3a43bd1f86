"""Perturbations, and pairs of a known cause: what makes none is counted."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.cli.main import main
from plaudit.data.perturb.run import perturb
from plaudit.data.perturb.table import (
    KINDS,
    PERTURBATIONS,
    SEVERITIES,
    choose_perturbations,
)
from plaudit.data.perturb.text import make_context, spaced_sentences
from plaudit.data.sources.documentation import MIX
from plaudit.errors import DataError
from plaudit.types import Comparison, Message, Turns
from tests.conftest import write_jsonl


def of_kind(kind: str) -> tuple[str, ...]:
    """The names of all perturbations of a kind."""
    return tuple(name for name, one in PERTURBATIONS.items() if one.kind == kind)


def comparison(name: str, responses: tuple[Turns, ...], grades: tuple[float, ...]) -> Comparison:
    return Comparison(
        id=name,
        prompt="Why?",
        responses=responses,
        grades=grades,
        group=name,
        source="file",
        where=name,
    )


SAID = (Message(role="assistant", content="Open the file before it is read."),)
ROWS = [
    comparison("text", ("Worse.", "Close the socket after it was read."), (0.0, 1.0)),
    comparison("chat", (SAID,), ()),
    comparison("picture", ((Message(role="assistant", content=[{"type": "image"}]),),), ()),
    comparison("short", ("Yes.",), ()),
]


def test_any_comparison_can_be_perturbed_and_what_cannot_is_counted() -> None:
    made = perturb(ROWS, choose_perturbations(["reversed_meaning", "truncation"]), seed=3)
    assert [pair.id for pair in made.comparisons] == [
        "text-reversed_meaning",
        "text-truncation",
        "chat-reversed_meaning",
        "chat-truncation",
    ]
    assert made.not_made == {
        "no text": 2,
        "reversed_meaning does not apply": 1,
        "truncation does not apply": 1,
    }
    first, _, third, _ = made.comparisons
    assert first.responses[0] == "Close the socket after it was read."
    assert (first.grades, first.group, first.prompt) == ((1.0, 0.0), "text", "Why?")
    assert first.metadata == {
        "subset": "reversed_meaning",
        "kind": "degradation",
        "severity": "major",
    }
    assert third.responses[0] == SAID
    assert third.responses[1][0].role == "assistant"  # type: ignore[union-attr]
    assert third.responses[1] != SAID


def test_perturbations_for_english_leave_other_languages_alone_and_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    german = "Man öffnet die Datei, bevor man sie liest, und schließt sie wieder."
    rows = [
        {"prompt": "Why?", "chosen": "Open the file before it is read.", "rejected": "No."},
        {"prompt": "Warum?", "chosen": german, "rejected": "Nein."},
        # Neither tells a language, so all perturbations are tried.
        {"prompt": "6 * 7?", "chosen": "42", "rejected": "43"},
    ]
    data, out = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    asked = ["--perturbations", "truncation,empty_politeness,sure", "--out", str(out), "--json"]
    assert main(["data", "perturb", str(data), *asked]) == 0
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert facts["languages"] == {"en": 1, "de": 1, "unknown": 1}
    assert facts["not_made"] == {
        "empty_politeness skipped: language": 1,
        "sure skipped: language": 1,
        "truncation does not apply": 1,
    }
    made = [json.loads(line) for line in out.read_text().splitlines()]
    of_german = [row for row in made if row["chosen"] == german]
    assert [german.startswith(row["rejected"]) for row in of_german] == [True]
    assert "languages: en 1, de 1, unknown 1" in said.err
    assert "empty_politeness skipped: language 1" in said.err


def test_scores_of_the_old_pair_are_not_those_of_the_new() -> None:
    old = {"strength": 2.0, "score_chosen": 8.5, "score_rejected": 3.0, "topic": "files"}
    rated = {"clear": (4.0, None)}
    given = replace(ROWS[0], metadata=old, margin=2.0, soft_label=0.6, rated=True, attributes=rated)
    (pair,) = perturb([given], choose_perturbations(["reversed_meaning"]), seed=3).comparisons
    assert (pair.margin, pair.soft_label, pair.rated, pair.attributes) == (None, None, False, {})
    assert set(pair.metadata) == {"topic", "subset", "kind", "severity"}


def test_where_nothing_can_be_altered_it_is_said_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "Why?", "chosen": "Yes.", "rejected": "No."}]
    data, out = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    asked = ["--perturbations", "truncation", "--out", str(out)]
    assert main(["data", "perturb", str(data), *asked]) == 2
    said = capsys.readouterr().err
    assert "none of the 1 rows can be perturbed: truncation does not apply 1." in said
    assert not out.exists()


def test_rewrites_make_ties_and_reward_hacking_makes_losers() -> None:
    made = perturb(ROWS, choose_perturbations(["final_newline", "echo"]), seed=0)
    assert {pair.metadata["subset"]: pair.grades for pair in made.comparisons} == {
        "final_newline": (1.0, 1.0),
        "echo": (1.0, 0.0),
    }
    echoed = [pair for pair in made.comparisons if pair.metadata["subset"] == "echo"]
    assert {pair.responses[1] for pair in echoed if isinstance(pair.responses[1], str)} == {"Why?"}


def test_so_many_a_row_and_the_same_again_in_any_order() -> None:
    perturbations = choose_perturbations(["degradation"])
    made = perturb(ROWS, perturbations, seed=0, per_row=2)
    per_row = [pair.id.split("-")[0] for pair in made.comparisons]
    assert {name: per_row.count(name) for name in per_row} == {"text": 2, "chat": 2, "short": 2}
    again = perturb(ROWS[::-1], perturbations, seed=0, per_row=2)
    assert {p.id: p for p in again.comparisons} == {p.id: p for p in made.comparisons}
    other = perturb(ROWS, perturbations, seed=1, per_row=2)
    assert [p.id for p in other.comparisons] != [p.id for p in made.comparisons]


TEXTS = (
    "Return the first item of the list, or None if the list is empty.",
    "Open the file for reading. Raise OSError if it cannot be opened.",
    "Set the size to 4096 bytes. The new_size must not be 0.",
    "Deprecated alias.",
    "Wait until all threads have stopped, then close the socket.",
    "Maps MixedCase names to their VALUES in 'order'.",
)
CONTEXT = make_context(TEXTS)
RICH = (
    "Maria met Anna in Paris on 3 May. They walked 5 km. It took two hours, then Maria left!",
    "- Apples are red.\n- Pears are green.\n- Plums are blue.\n",
    '# The heading\n\nSome **bold** text, it\'s `code` and "quoted" words.\n\n```\nx = 1\n```\n',
    "1. One\n2. Two\n\nWhat now? Nothing. Really nothing.",
    f"Let us write a {'very ' * 20}long line of text. And another sentence.",
)
# "ı", "ſ" and the Kelvin sign count as i, s and k where case does not; "٣" is a digit.
odd = st.text("ıſKİßµ²٣0123456789 .,!?kmseCdiF°-*`#\"'’\n\t\u200b\u202e😀", max_size=60)
PIECES = re.findall(
    r"\S+",
    "ıs iſ is not the before 5 km 7 Kelvin 3.5 °C two ſix Paris Anna May don't can ’t - * # ``` ` "
    ". and first, Return returns KeyError 9999999999999999999999999",
)
words = st.lists(st.sampled_from([*PIECES, "\n", " \n\n"]), max_size=30).map(" ".join)
texts = st.one_of(st.text(), odd, words, st.sampled_from([*TEXTS, *RICH]))


@pytest.mark.parametrize("name", PERTURBATIONS)
@settings(deadline=None, max_examples=40)
@given(text=texts, seed=st.integers(0, 1000))
def test_another_text_or_none_and_the_same_again(name: str, text: str, seed: int) -> None:
    perturbation = PERTURBATIONS[name]
    altered = perturbation.apply(text, Random(seed), CONTEXT)
    assert altered == perturbation.apply(text, Random(seed), CONTEXT)
    if altered is not None:
        assert altered != text
        altered.encode()
        if perturbation.kind == "degradation":
            assert altered.split() != text.split()
            assert altered.strip()


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_every_operator_takes_hold_of_some_text(name: str) -> None:
    made = {
        PERTURBATIONS[name].apply(text, Random(seed), replace(CONTEXT, prompt="Why?"))
        for text in (*TEXTS, *RICH, PRESERVED)
        for seed in range(3)
    }
    assert made - {None}


@pytest.mark.parametrize("name", PERTURBATIONS)
@pytest.mark.parametrize("size", [1, 60_000])
def test_long_digits_and_long_words_are_no_trouble(name: str, size: int) -> None:
    for text in ("7" * size, "x" * size, f"{'a ' * (size // 2)}. "):
        altered = PERTURBATIONS[name].apply(text, Random(0), CONTEXT)
        assert altered is None or altered != text


PRESERVED = 'It is so.\n\n- One **thing**\n\n1. First\n\n# a heading\n\nDo not say "it\'s".  Yes.'


# What a rewrite may change besides white space.
MAY_CHANGE = {
    "bullet_style": r"[-*]",
    "number_style": r"[.)]",
    "bold_style": r"[*_]",
    "quote_style": r"[\"'“”‘’]",
}


@pytest.mark.parametrize("name", of_kind("meaning_preserving"))
@settings(deadline=None, max_examples=40)
@given(text=texts, seed=st.integers(0, 100))
def test_a_rewrite_keeps_all_words(name: str, text: str, seed: int) -> None:
    altered = PERTURBATIONS[name].apply(text, Random(seed), CONTEXT)
    if altered is None or name == "contractions":
        return
    kept = re.compile(MAY_CHANGE.get(name, r"(?!)"))
    old, new = (kept.sub("", one) for one in (text, altered))
    if name == "heading_case":
        old, new = old.casefold(), new.casefold()
    if name == "list_order":
        assert sorted(new.split("\n")) == sorted(old.split("\n"))
    else:
        assert new.split() == old.split()


@pytest.mark.parametrize("text", ["", "  \n "])
@pytest.mark.parametrize("name", of_kind("degradation"))
def test_nothing_can_be_made_worse_only_by_another_text(name: str, text: str) -> None:
    altered = PERTURBATIONS[name].apply(text, Random(0), CONTEXT)
    assert altered is None or name == "other_text"


@given(text=st.sampled_from(TEXTS), seed=st.integers(0, 1000))
def test_other_text_is_another_answer_of_like_length(text: str, seed: int) -> None:
    found = PERTURBATIONS["other_text"].apply(text, Random(seed), CONTEXT)
    assert found in set(TEXTS) - {text}


def test_other_text_never_is_a_right_answer() -> None:
    context = make_context(["Stop it now.", "Go on with it.", "Begin it, then stop it now."])
    for seed in range(20):
        assert (
            PERTURBATIONS["other_text"].apply("Stop it now.", Random(seed), context)
            == "Go on with it."
        )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Stop before the file.", {"Stop after the file."}),
        ("This is not it.", {"This is it."}),
        ("True for files.", {"False for files."}),
        ("Return the sum.", {"Do not return the sum."}),
        ("Returns the sum.", {"Does not return the sum."}),
        ("Empty or first.", {"Non-empty or first.", "Empty or last."}),
        ("Sum of x.true and 'all'", {None}),
    ],
)
def test_reversed_meaning_turns_one_word(text: str, expected: set[str | None]) -> None:
    found = {
        PERTURBATIONS["reversed_meaning"].apply(text, Random(seed), CONTEXT) for seed in range(40)
    }
    assert found == expected


def test_changed_value_replaces_one_name_or_number_everywhere() -> None:
    text = "Raise KeyError for 7, and KeyError for 7 again."
    for seed in range(40):
        changed = PERTURBATIONS["changed_value"].apply(text, Random(seed), CONTEXT)
        assert changed is not None
        words = re.findall(r"\w+", changed)
        assert (words.count("KeyError"), words.count("7")) in {(2, 0), (0, 2)}
        assert len(set(words)) == len(set(re.findall(r"\w+", text)))


@given(st.sampled_from(TEXTS), st.integers(0, 1000))
def test_dropped_and_truncated_words_are_words_of_the_text(text: str, seed: int) -> None:
    for name in ("dropped_words", "truncation"):
        perturbed = PERTURBATIONS[name].apply(text, Random(seed), CONTEXT)
        if perturbed is not None:
            assert not Counter(perturbed.split()) - Counter(text.split())
            assert len(perturbed.split()) < len(text.split())
    cut = PERTURBATIONS["truncation"].apply(text, Random(seed), CONTEXT)
    assert cut is None or (text.startswith(cut) and cut[-1] not in ".!?")


@given(st.sampled_from(TEXTS), st.integers(0, 1000))
def test_shuffled_words_are_the_same_words(text: str, seed: int) -> None:
    perturbed = PERTURBATIONS["shuffled_words"].apply(text, Random(seed), CONTEXT)
    assert perturbed is None or sorted(perturbed.split()) == sorted(text.split())


@given(st.sampled_from(TEXTS), st.integers(0, 1000))
def test_appended_and_repeated_words_leave_the_text_whole(text: str, seed: int) -> None:
    contradicted = PERTURBATIONS["contradiction"].apply(text, Random(seed), CONTEXT)
    assert contradicted is None or contradicted.startswith(text)
    for name in ("repeated_phrase", "verbose_filler"):
        longer = PERTURBATIONS[name].apply(text, Random(seed), CONTEXT)
        if longer is not None:
            words = iter(longer.replace(".", " ").split())
            assert all(word in words for word in text.replace(".", " ").split())


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("changed_unit", "Walk 5 km.", r"Walk 5 (mm|cm|m|in|ft|yd|mi)\."),
        ("changed_unit", "It takes 3 hours.", r"It takes 3 \w+s\."),
        ("changed_unit", "At 20°C.", r"At 20°F\."),
        ("changed_unit", "Add 5 apples and ms.", None),
        ("changed_number", "Two of 12, but Two.", r"(\w+ of 12, but \w+|Two of \d+, but Two)\."),
        ("changed_number", "One of them.", None),
        ("swapped_entities", "Then Anna saw Bob.", r"Then Bob saw Anna\."),
        ("swapped_entities", "Paris is large.", r"\w+ is large\."),
        ("swapped_entities", "Nobody is there.", None),
        ("dropped_sentence", "One is. Two are.", r"(One is|Two are)\."),
        ("dropped_sentence", "Only one.", None),
        ("shuffled_sentences", "One is. Two are.", r"Two are\. One is\."),
        ("shuffled_sentences", "Same. Same.", None),
        ("other_language", "Dazu lässt sich das und die nicht sagen.", r"(?!.*(Dazu|Es kommt)).*"),
        ("echo", "Yes.", None),
        ("list_order", "- a\n- b", r"- b\n- a"),
        ("list_order", "- a\n- b, then c", None),
        ("list_order", "1. a\n2. b", None),
        ("list_order", "- a\n  - b\n- c", None),
        ("list_order", "```\n\n- a\n- b\n\n```", None),
        ("wrapped_lines", f"{'word ' * 15}- end", r"(word ){13}word\nword - end"),
    ],
)
def test_what_becomes_of_a_text(name: str, text: str, expected: str | None) -> None:
    for seed in range(20):
        altered = PERTURBATIONS[name].apply(text, Random(seed), CONTEXT)
        if expected is None:
            assert altered is None
        else:
            assert altered is not None
            assert re.fullmatch(expected, altered), altered


def test_sentences_of_a_text_make_the_text() -> None:
    for text in (*TEXTS, *RICH, ""):
        assert "".join(sentence + space for sentence, space in spaced_sentences(text)) == text


def test_the_table_is_complete_and_the_mix_is_its_beginning() -> None:
    assert tuple(PERTURBATIONS)[:10] == MIX
    for name, perturbation in PERTURBATIONS.items():
        assert name == perturbation.name == perturbation.function.__name__
        assert perturbation.description.endswith(".")
        assert perturbation.kind in KINDS
        assert perturbation.severity in SEVERITIES
        assert (perturbation.severity == "none") == (perturbation.kind == "meaning_preserving")


def test_perturbations_are_chosen_by_name_kind_and_severity() -> None:
    assert [one.name for one in choose_perturbations(["sure", "truncation"])] == [
        "truncation",
        "sure",
    ]
    assert len(choose_perturbations(["all"])) == len(PERTURBATIONS)
    assert {one.kind for one in choose_perturbations(["degradation"])} == {"degradation"}
    critical = choose_perturbations(["degradation"], ["critical"])
    assert [one.name for one in critical] == ["other_text", "other_language"]
    with pytest.raises(DataError, match="unknown perturbation 'upside_down'; expected all"):
        choose_perturbations(["upside_down"])
    with pytest.raises(DataError, match="unknown severity 'bad'; expected some of"):
        choose_perturbations(["all"], ["bad"])
    with pytest.raises(DataError, match="no perturbation in meaning_preserving has the severity"):
        choose_perturbations(["meaning_preserving"], ["major"])
