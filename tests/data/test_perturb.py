"""Pairs out of any comparisons: a known cause each, and what made none is counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from plaudit.cli.main import main
from plaudit.data.perturb.run import perturb
from plaudit.data.perturb.table import choose_perturbations
from plaudit.types import Comparison, Message, Turns
from tests.conftest import write_jsonl


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
    assert "languages of the rows: en 1, de 1, unknown 1" in said.err
    assert "empty_politeness skipped: language 1" in said.err


def test_scores_of_the_old_pair_are_not_those_of_the_new() -> None:
    old = {"strength": 2.0, "score_chosen": 8.5, "score_rejected": 3.0, "topic": "files"}
    given = replace(ROWS[0], metadata=old, margin=2.0)
    (pair,) = perturb([given], choose_perturbations(["reversed_meaning"]), seed=3).comparisons
    assert pair.margin is None
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
