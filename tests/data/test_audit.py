"""The audit: every check flags its rows and no others, and the cleaned copy adds up."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.common.planting import KINDS, plant, ranked
from plaudit.audit_data import AuditOptions, audit_data
from plaudit.data.audit import measure, run, similarity
from plaudit.data.audit.checks import CHECKS
from plaudit.data.audit.fix import REPAIRS, change_log_of, write_cleaned
from plaudit.data.audit.measure import PROBLEMS, TokenCount
from plaudit.data.audit.run import Audit
from plaudit.data.audit.similarity import (
    NEAR,
    HeldOutGrams,
    Sketcher,
    grams,
    jaccard,
    shingles,
    words,
)
from plaudit.data.load import load_comparisons, open_source
from plaudit.data.sources.read import read_rows
from plaudit.errors import DataError, OutputError
from plaudit.recipe.objectives import OBJECTIVES
from plaudit.recipe.schema import Source
from plaudit.storage import fork_pool
from plaudit.types import Comparison, Message, TokenTree
from tests.conftest import write_jsonl
from tests.data.test_readers import EXAMPLES

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def look(
    data: Path | str,
    *,
    eval_: Sequence[str] = (),
    suite: Sequence[str] = (),
    max_length: int = 2048,
    loss: str = "bradley_terry",
) -> Audit:
    return audit_data(
        AuditOptions(
            data=[str(data)], eval_data=eval_, suites=suite, max_length=max_length, loss=loss
        )
    )


def pair(prompt: str, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def found(result: Audit) -> dict[str, list[int]]:
    """Line numbers of the flagged rows, by check."""
    lines = {name: (flagged.rows_M + 1).tolist() for name, flagged in result.flagged.items()}
    return {name: rows for name, rows in lines.items() if rows}


# --- planted defects ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def documentation() -> list[dict[str, Any]]:
    """Pairs of Python's documentation, one per prompt."""
    rows = (row for _, row in read_rows(Source(path="documentation:training:2000")))
    by_prompt = {json.dumps(row["prompt"]): ranked(row) for row in rows}
    return list(by_prompt.values())


EACH = 5


@pytest.fixture(scope="module")
def planted(
    documentation: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Audit, Path]:
    made = plant(documentation[:600], EACH, seed=3)
    folder = tmp_path_factory.mktemp("planted")
    data = write_jsonl(folder / "data.jsonl", made.rows)
    held_out = write_jsonl(folder / "held_out.jsonl", made.eval_)
    suite = write_jsonl(folder / "suite.jsonl", made.suite)
    return made, look(data, eval_=[str(held_out)], suite=[f"pairs:{suite}"]), data


def test_there_is_a_planted_kind_for_every_check() -> None:
    # Messages alone can be rejected by a template or hold more than it renders, and media
    # (test_nothing_vanishes_content.py); near_suite is near_eval against another set. A prompt is
    # missing, and text stands beside a template, in whole files (test_nothing_vanishes_columns.py).
    messages = {"template_error", "not_rendered", "media", "more_than_text"}
    # Checks of ratings are of another objective, and are below.
    ratings = {"not_labels", "constant_ratings", "conflicting_ratings"}
    elsewhere = messages | ratings | {"near_suite", "prompt_mismatch", "no_prompt", "plain_text"}
    assert set(KINDS) == {check.name for check in CHECKS} - elsewhere


@pytest.mark.parametrize("kind", KINDS)
def test_planted_defects_are_flagged(kind: str, planted: tuple[Any, Audit, Path]) -> None:
    made, result, _ = planted
    lines = set((result.flagged[kind].rows_M + 1).tolist())
    assert len(set(made.lines[kind]) & lines) == EACH, f"{kind}: missed some of {made.lines[kind]}"


def test_clean_rows_are_left_alone(planted: tuple[Any, Audit, Path]) -> None:
    made, result, _ = planted
    clean = len(made.rows) - len(made.planted)
    # Documentation of a function repeats that of its like: near_eval tells of real likeness.
    alarms = {
        line
        for name, flagged in result.flagged.items()
        for line in (flagged.rows_M + 1).tolist()
        if line not in made.planted
    }
    assert len(alarms) <= 0.01 * clean, sorted(alarms)


def test_findings_name_places(planted: tuple[Any, Audit, Path]) -> None:
    _, result, data = planted
    for finding in result.report.findings:
        if finding.rows is None:
            continue
        flagged = result.flagged[finding.check]
        assert finding.rows == len(flagged.rows_M)
        assert [example.where for example in finding.examples] == [
            f"{data}:{row + 1}" for row in flagged.rows_M[:5].tolist()
        ]
        assert list(flagged.rows_M) == sorted(set(flagged.rows_M.tolist()))
    json.dumps(asdict(result.report), allow_nan=False)


# --- the cleaned copy ---------------------------------------------------------------------------


def test_the_cleaned_copy_accounts_for_every_row(
    planted: tuple[Any, Audit, Path], tmp_path: Path
) -> None:
    made, result, data = planted
    out = tmp_path / "fixed.jsonl"
    cleaned = write_cleaned(Source(path=str(data)), out, result.drop_N)
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    changes = [json.loads(line) for line in change_log_of(out).read_text().splitlines()]
    assert cleaned.rows == len(made.rows)
    assert len(rows) == cleaned.kept + cleaned.changed_rows
    assert len(changes) == cleaned.changed_rows + sum(cleaned.dropped.values())
    touched = {int(entry["where"].rpartition(":")[2]) for entry in changes}
    untouched = [row for line, row in enumerate(made.rows, start=1) if line not in touched]
    assert len(untouched) == cleaned.kept
    kept = {json.dumps(row) for row in rows}
    assert all(json.dumps(row) in kept for row in untouched)
    again = look(
        out,
        eval_=[str(data.with_name("held_out.jsonl"))],
        suite=[f"pairs:{data.with_name('suite.jsonl')}"],
    )
    # Token counts are estimates here, and rows are not dropped on an estimate.
    left = {check.name for check in CHECKS if check.fix == "drop" and check.name in found(again)}
    assert left == {"identical_after_truncation"}
    assert "special_tokens" not in found(again)


def test_the_cleaned_copy_is_the_same_every_time(
    planted: tuple[Any, Audit, Path], tmp_path: Path
) -> None:
    _, result, data = planted
    for name in ("one.jsonl.gz", "two.jsonl.gz"):
        write_cleaned(Source(path=str(data)), tmp_path / name, result.drop_N)
    one, two = ((tmp_path / name).read_bytes() for name in ("one.jsonl.gz", "two.jsonl.gz"))
    assert one == two
    assert gzip.decompress(one)


def test_the_majority_is_kept_and_without_one_nothing(tmp_path: Path) -> None:
    two_to_one = [pair("Which?", "This one.", "That one.")] * 2 + [
        pair("Which?", "That one.", "This one.")
    ]
    even = [pair("Where?", "Here, I think.", "There."), pair("Where?", "There.", "Here, I think.")]
    data = write_jsonl(tmp_path / "votes.jsonl", [*two_to_one, *even])
    result = look(data)
    assert found(result)["opposite_labels"] == [1, 2, 3, 4, 5]
    assert result.flagged["several_votes"].details == {
        "pairs": 2,
        "labels": 5,
        "unanimous": 0,
        "agreement": 0.25,  # of the four couples of labels, the two equal ones
        "kappa": -0.5,
    }
    cleaned = write_cleaned(Source(path=str(data)), tmp_path / "fixed.jsonl", result.drop_N)
    assert cleaned.dropped == {"exact_duplicates": 1, "opposite_labels": 3}
    (row,) = (tmp_path / "fixed.jsonl").read_text().splitlines()
    assert json.loads(row) == two_to_one[0]


def test_near_duplicates_are_reported_and_kept(tmp_path: Path) -> None:
    long = "The answer to this rather long question has a good many words in it, as one can see."
    rows = [
        pair("What was asked?", long, "No idea at all."),
        pair("What was asked?", long + " <|im_end|>", "No idea at all."),
        pair("What was asked?", "No idea at all.", long),
    ]
    result = look(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert found(result)["near_duplicates"] == [2]
    assert found(result)["opposite_labels"] == [1, 3]
    assert [CHECKS[v - 1].name if v else None for v in result.drop_N.tolist()] == [
        "opposite_labels",
        None,
        "opposite_labels",
    ]


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet"])
def test_a_repaired_row_keeps_its_columns(ending: str, tmp_path: Path) -> None:
    rows = [
        pair("How?", "Like <|eot_id|>this.", "Like that.", note="<s> stays", number=3),
        pair("Why?", "So \x08it goes.", "Because.", note="", number=None),
    ]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    out = tmp_path / f"fixed{ending}"
    cleaned = write_cleaned(Source(path=str(data)), out, look(data).drop_N)
    assert cleaned.changed == {"special_tokens": 1, "bad_characters": 1}
    back = [row for _, row in read_rows(Source(path=str(out)))]
    assert [row["chosen"] for row in back] == ["Like this.", "So it goes."]
    assert [row["note"] for row in back] == ["<s> stays", ""]
    assert list(back[0]) == list(rows[0])


def test_a_system_message_out_of_another_column_is_repaired(tmp_path: Path) -> None:
    turns = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    row = {side: [{"role": role, "content": side}] for side, role in turns.items()}
    data = write_jsonl(tmp_path / "rows.jsonl", [{"setting": "Be kind.<|eot_id|>", **row}])
    out = tmp_path / "fixed.jsonl"
    result = audit_data(AuditOptions(data=[str(data)], fix=out, columns={"system": "setting"}))
    assert result.report.cleaned is not None
    assert result.report.cleaned.changed == {"special_tokens": 1}
    assert json.loads(out.read_text()) == {"setting": "Be kind.", **row}


def test_rows_that_the_repair_makes_untrainable_are_dropped(tmp_path: Path) -> None:
    rows = [
        pair("How?", "<|eot_id|>", "Like that."),
        pair("Why?", "Because.", "Because.</s>"),
        pair("When?", "Then.", "Never."),
        pair("When?", "Then.<eos>", "Never."),
    ]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    result = look(data)
    verdicts = np.zeros_like(result.drop_N)
    cleaned = write_cleaned(Source(path=str(data)), tmp_path / "fixed.jsonl", verdicts)
    assert cleaned.dropped == {
        "empty_response": 1,
        "identical_responses": 1,
        "exact_duplicates": 1,
    }
    assert cleaned.kept == 1


@pytest.mark.parametrize("format_", EXAMPLES)
def test_texts_of_every_format_are_repaired(format_: str, tmp_path: Path) -> None:
    def spoilt(value: Any, key: str = "") -> Any:
        if isinstance(value, str) and key not in ("role", "from", "winner"):
            return value + "<|im_end|>"
        if isinstance(value, list):
            return [spoilt(item) for item in value]
        if isinstance(value, dict):
            return {name: spoilt(item, name) for name, item in value.items()}
        return value

    data = write_jsonl(tmp_path / "rows.jsonl", [spoilt(EXAMPLES[format_])])
    source = Source(path=str(data), format=format_)
    (given,) = (comparison for *_, comparison in open_source(source).rows)
    assert PROBLEMS["special_tokens"](given)
    out = tmp_path / "fixed.jsonl"
    cleaned = write_cleaned(source, out, np.zeros(1, np.uint8))
    assert cleaned.changed == {"special_tokens": 1}
    (repaired,) = (c for *_, c in open_source(Source(path=str(out), format=format_)).rows)
    assert not PROBLEMS["special_tokens"](repaired)


def test_of_equal_rows_on_both_sides_of_a_split_one_stays(tmp_path: Path) -> None:
    rows = [pair(f"Question {n}?", f"Yes {n}.", "No.", split="train") for n in range(4)]
    rows += [pair("Question 2?", "Yes 2.", "No.", split="test")] * 2
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    out = tmp_path / "fixed.jsonl"
    cleaned = write_cleaned(Source(path=str(data)), out, look(data).drop_N)
    assert cleaned.dropped == {"split_column_leak": 1, "exact_duplicates": 1}
    assert [row for _, row in read_rows(Source(path=str(out)))] == [*rows[:2], *rows[3:5]]


def test_the_input_is_never_written_over(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [pair("How?", "So.", "Not so.")] * 3)
    before = data.read_bytes()
    verdicts = look(data).drop_N
    with pytest.raises(OutputError, match="already exists"):
        write_cleaned(Source(path=str(data)), data, verdicts)
    with pytest.raises(OutputError, match="unknown file extension"):
        write_cleaned(Source(path=str(data)), tmp_path / "fixed.txt", verdicts)
    assert data.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_repairs_and_checks_agree() -> None:
    assert set(REPAIRS) == {check.name for check in CHECKS if check.fix == "repair"}


# --- likeness -----------------------------------------------------------------------------------


def test_sketches_are_those_of_the_library() -> None:
    from datasketch import MinHash

    one, other = shingles(words("a b c d e f g h")), shingles(words("a b c d e f g x"))
    sketch = Sketcher(64)
    theirs = [MinHash(num_perm=64, seed=1, hashfunc=int) for _ in range(2)]
    for minhash, found_S in zip(theirs, (one, other), strict=True):
        for shingle in found_S.tolist():
            minhash.update(shingle)
    assert np.array_equal(sketch(one), theirs[0].hashvalues)
    estimate = float(np.mean(sketch(one) == sketch(other)))
    assert estimate == theirs[0].jaccard(theirs[1])
    assert jaccard(one, other) == 6 / 8


@given(st.lists(st.integers(0, 50), max_size=40), st.lists(st.integers(0, 50), max_size=40))
def test_jaccard_is_that_of_sets(one: list[int], other: list[int]) -> None:
    sets = [np.unique(np.array(values, np.uint32)) for values in (one, other)]
    union = set(one) | set(other)
    expected = len(set(one) & set(other)) / len(union) if union else 1.0
    assert jaccard(*sets) == pytest.approx(expected)


def test_words_are_what_is_said() -> None:
    same = ["It IS, so!", "it is so", " it\n\nis  -- so "]
    assert len({words(text).tobytes() for text in same}) == 1
    assert len(words("什么是梯度")) == 5, "a character of a script without spaces is a word"
    assert len(words("👍👎")) == 2, "without words, signs count"
    assert not len(words("  \n"))
    assert not len(grams(words("too short")))


@given(TEXT)
def test_words_take_any_text(text: str) -> None:
    assert bool(len(words(text))) == bool("".join(text.split()))


def test_all_near_pairs_of_a_cluster_are_found_by_force(tmp_path: Path) -> None:
    """Every row that is near an earlier one, as comparing all pairs finds them."""
    generator = np.random.default_rng(0)
    rows = []
    for cluster in range(12):
        base = [f"v{n}" for n in generator.integers(0, 400, 60)]
        for _ in range(8):
            edits = generator.integers(0, 60, generator.integers(0, 8))
            text = [
                f"e{generator.integers(0, 10**6)}" if n in edits else w for n, w in enumerate(base)
            ]
            rows.append(pair(f"Question {cluster}", " ".join(text), "No."))
    result = look(write_jsonl(tmp_path / "rows.jsonl", rows))
    sets = [shingles(words(row["chosen"])) for row in rows]
    different = {row + 1 for row in range(len(rows))} - set(
        found(result).get("exact_duplicates", [])
    )
    expected = {
        row + 1
        for row in range(len(rows))
        if any(
            rows[row]["prompt"] == rows[other]["prompt"] and jaccard(sets[row], sets[other]) >= NEAR
            for other in range(row)
            if other + 1 in different
        )
    } & different
    got = set(found(result)["near_duplicates"])
    assert got <= expected, "the texts decide"
    assert len(got) >= 0.95 * len(expected)
    assert len(expected) > 20


def test_many_candidates_are_sampled_and_the_finding_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similarity, "MOST_CHECKED", 10)
    opening = " ".join(f"word{n}" for n in range(60))
    rows = [pair("Which?", f"{opening} {n}", "No.") for n in range(40)]
    details = look(write_jsonl(tmp_path / "rows.jsonl", rows)).flagged["near_duplicates"].details
    assert details["checked"] == 10 < details["candidates"]


def test_prompts_of_one_template_are_not_alike(tmp_path: Path) -> None:
    template = "Read the passage with care, think step by step, and answer in one short sentence. "
    template = template * 2 + "Passage: "
    subjects = [f"topic{n} item{n} place{n} person{n}" for n in range(40)]
    rows = [pair(template + subject, "Yes, it is.", "No.") for subject in subjects[:20]]
    held_out = [pair(template + subject, "Yes, so.", "No.") for subject in subjects[20:]]
    held_out.append(pair(template + subjects[0] + " indeed", "Yes, so.", "No."))
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    other = write_jsonl(tmp_path / "other.jsonl", held_out)
    assert found(look(data, eval_=[str(other)])) == {"near_eval": [1]}


def test_a_held_out_prompt_inside_a_row_is_found() -> None:
    question = " ".join(f"word{n}" for n in range(30))
    held_out = HeldOutGrams([(7, question), (8, "a short one"), (9, question)])
    inside = grams(words(f"As somebody asked: {question}? And so on."))
    assert held_out.copied([inside]) == 7
    assert held_out.copied([grams(words(question[:120]))]) == -1, "less than half of it"
    assert held_out.copied([grams(words("nothing of the kind " * 10))]) == -1
    assert HeldOutGrams().copied([inside]) == -1


# --- numbers ------------------------------------------------------------------------------------


def test_worker_processes_find_the_same(
    planted: tuple[Any, Audit, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, result, data = planted
    monkeypatch.setattr(fork_pool, "worker_count", lambda rows: 2)
    monkeypatch.setattr(run, "BAG_OF_WORDS_ROWS", 0)
    again = look(
        data,
        eval_=[str(data.with_name("held_out.jsonl"))],
        suite=[f"pairs:{data.with_name('suite.jsonl')}"],
    )
    assert found(again) == found(result)
    assert again.report.lengths == result.report.lengths


def test_the_report_counts_every_row_once(planted: tuple[Any, Audit, Path]) -> None:
    _, result, _ = planted
    report = result.report
    assert report.rows == report.trainable.rows + sum(report.trainable.skipped.values())
    assert sum(row.count for row in report.scripts.prompts) == report.rows
    assert sum(report.shape.responses.values()) == report.rows
    assert report.lengths.prompt_characters is not None
    assert sum(report.lengths.prompt_characters.histogram.counts) == report.rows
    overs = {limit.tokens: limit.rows for limit in report.over_lengths}
    assert list(overs) == [512, 1024, 2048, 4096]
    assert sorted(overs.values(), reverse=True) == list(overs.values())
    assert overs[2048] == len(result.flagged["over_length"].rows_M)


RATED: list[dict[str, Any]] = [
    {"prompt": "One?", "responses": ["first answer"], "grades": [1]},
    {"prompt": "Two?", "responses": ["second answer"], "grades": [0]},
    {"prompt": "Three?", "responses": ["third answer", "fourth answer"], "grades": [1, 1]},
    {"prompt": "Four?", "responses": ["fifth answer", "sixth answer"], "grades": [0.5, 0]},
    {"prompt": "Five?", "responses": ["seventh answer"], "grades": [4]},
    {"prompt": "One?", "responses": ["first answer"], "grades": [0]},
    {"prompt": "Six?", "responses": ["eighth answer"]},
    {"prompt": "Seven?", "responses": ["ninth answer", "last"], "grades": [1, 0], "soft_label": 1},
    {"prompt": "Nine?", "responses": ["no answer", "some"], "grades": [1, 0], "soft_label": 0.5},
]


@pytest.mark.parametrize(
    ("loss", "skipped"),
    [
        ("bradley_terry", {"single_response": 5, "tie": 1}),
        ("davidson", {"single_response": 5}),
        ("mse", {"unlabelled": 1}),
        ("bce", {"unlabelled": 1}),
    ],
)
def test_the_objective_decides_which_rows_can_be_trained_on(
    loss: str, skipped: dict[str, int], tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", RATED)
    report = look(data, loss=loss).report
    assert report.settings.loss == loss
    assert report.trainable.skipped == skipped
    assert report.trainable.rows == len(RATED) - sum(skipped.values())
    # What training reads of the file.
    loaded = load_comparisons(
        (Source(path=str(data)),), seed=1, learns_from=OBJECTIVES[loss].learns_from
    )
    assert loaded.tally.dropped == skipped


def test_labels_are_counted_by_what_they_say(tmp_path: Path) -> None:
    labels = look(write_jsonl(tmp_path / "rows.jsonl", RATED)).report.labels
    assert (labels.ordered, labels.ties, labels.tie_share) == (3, 1, 0.25)
    assert (labels.rated, labels.soft_labels, labels.mean_soft_label) == (8, 2, 0.75)
    assert labels.ratings is not None
    assert labels.ratings.responses == 12
    levels = {level.rating: level.responses for level in labels.ratings.levels}
    assert levels == {0: 5, 0.5: 1, 1: 5, 4: 1}
    assert labels.objectives["hinge"] == 3
    assert labels.objectives["rao_kupper"] == 4
    assert (labels.objectives["mse"], labels.objectives["bce"]) == (8, 7)
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [pair("A?", "b", "c", soft_label=0.6)])
    labels = look(pairs).report.labels
    assert (labels.ordered, labels.rated, labels.ratings) == (1, 0, None)
    assert (labels.soft_labels, labels.objectives["mse"]) == (1, 0)


def test_attributes_are_counted_per_response(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all batches, and not over the rows that the data are compared with."""
    monkeypatch.setattr(measure, "BATCH_ROWS", 4)
    rows: list[dict[str, Any]] = [
        {"prompt": f"{n}?", "responses": [f"answer {n}"], "attributes": {"clear": n}}
        for n in range(9)
    ]
    several = ({"clear": [None, -3.5], "Brief": [0.5, 2.5]}, {"Brief": [None, None]})
    rows += [{"prompt": "A?", "responses": ["b", "c"], "attributes": some} for some in several]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    other = [pair("G?", "h", "i", attributes={"clear": [99, 99], "other": [1, 1]})]
    held_out = write_jsonl(tmp_path / "eval.jsonl", other)
    labels = look(data, eval_=[str(held_out)]).report.labels
    assert [asdict(one) for one in labels.attributes] == [
        {"name": "clear", "responses": 10, "least": -3.5, "most": 8.0, "mean": 3.25},
        {"name": "Brief", "responses": 2, "least": 0.5, "most": 2.5, "mean": 1.5},
    ]
    assert look(held_out).report.labels.attributes[1].name == "other"
    assert look(write_jsonl(tmp_path / "plain.jsonl", RATED)).report.labels.attributes == ()


def test_rows_that_differ_in_a_label_alone_are_no_duplicates(tmp_path: Path) -> None:
    rows = [
        pair("A?", "b", "c"),
        pair("A?", "b", "c", soft_label=0.8),
        pair("A?", "b", "c", soft_label=1),
        pair("A?", "b", "c", soft_label=0.6),
        pair("A?", "b", "c", attributes={"clear": [1, 2]}),
        pair("A?", "b", "c", attributes={"clear": [2, 1]}),
        pair("A?", "b", "c", attributes={"clear": [1, None]}),
        pair("A?", "b", "c", attributes={"brief": [1, 2]}),
        pair("A?", "b", "c", attributes={"brief": [None, None], "clear": [1, 2]}),
        pair("A?", "b", "c", attributes={"clear": [1, 2], "brief": [0, 0]}),
        pair("A?", "b", "c", attributes={"brief": [0, 0], "clear": [1, 2]}),
    ]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    result = look(data)
    assert found(result)["exact_duplicates"] == [3, 9, 11]
    assert result.flagged["exact_duplicates"].other_M.tolist() == [0, 4, 9]
    out = tmp_path / "clean.jsonl"
    counts = write_cleaned(Source(path=str(data)), out, result.drop_N)
    assert (counts.kept, counts.dropped) == (8, {"exact_duplicates": 3})
    # The order of the responses in a row says nothing.
    turned = [
        {"prompt": "A?", "responses": ["b", "c"], "attributes": {"clear": [1, None]}},
        {"prompt": "A?", "responses": ["c", "b"], "attributes": {"clear": [None, 1]}},
        {"prompt": "A?", "responses": ["c", "b"], "attributes": {"clear": [1, None]}},
    ]
    result = look(write_jsonl(tmp_path / "turned.jsonl", turned))
    assert found(result)["exact_duplicates"] == [2]


def test_ratings_are_checked_for_objectives_that_learn_from_them(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", RATED)
    ratings = ("not_labels", "constant_ratings", "conflicting_ratings")
    flagged = look(data).flagged
    assert not flagged.keys() & set(ratings)
    result = look(data, loss="bce")
    assert [found(result).get(name) for name in ratings] == [[5], None, [6]]
    assert result.flagged["conflicting_ratings"].other_M.tolist() == [0]
    assert "not_labels" not in look(data, loss="mse").flagged
    same = [{"prompt": f"{n}?", "responses": [f"answer {n}"], "grades": [3]} for n in range(4)]
    result = look(write_jsonl(tmp_path / "same.jsonl", same), loss="mse")
    assert found(result) == {"constant_ratings": [1, 2, 3, 4]}
    with pytest.raises(DataError, match="--loss mes: unknown objective; did you mean mse"):
        look(data, loss="mes")


def test_many_ratings_have_percentiles_and_no_levels(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}?", "responses": [f"{n}"], "grades": [n / 10]} for n in range(101)]
    ratings = look(write_jsonl(tmp_path / "rows.jsonl", rows), loss="huber").report.labels.ratings
    assert ratings is not None
    assert ratings.levels == ()
    assert (ratings.percentiles["0"], ratings.percentiles["50"]) == (0.0, 5.0)


def test_labels_that_reward_length_are_called_that(tmp_path: Path) -> None:
    rows = [
        pair(f"Question {n}?", f"A longer answer, number {n}.", "Short.") for n in range(80)
    ] + [pair(f"Question {n}?", "Short.", f"A longer answer, number {n}.") for n in range(80, 100)]
    surface = look(write_jsonl(tmp_path / "rows.jsonl", rows)).report.surface
    longer, bag_of_words, length_gap = surface.longer, surface.bag_of_words, surface.length_gap
    assert (longer.accuracy, longer.pairs, longer.ties) == (0.8, 100, 0)
    assert longer.accuracy_ci95 == pytest.approx((0.7112, 0.8666), abs=1e-4)
    assert surface.shorter.accuracy == pytest.approx(0.2)
    assert bag_of_words is not None
    assert bag_of_words.accuracy == pytest.approx(0.8, abs=0.05)
    assert length_gap is not None
    assert sum(length_gap.counts) == 100


def test_rows_of_many_responses_are_compared_pairwise(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Rank.", "responses": ["a", "bb", "ccc"], "grades": [3, 2, 1]},
        {"prompt": "Rank.", "responses": ["bb", "a"], "grades": [1, 0]},
        {"prompt": "Rank.", "responses": [str(n) * 3 for n in range(10)], "grades": [*range(10)]},
    ]
    result = look(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert found(result)["opposite_labels"] == [1, 2]
    assert result.report.surface.longer.pairs == 3 + 1 + 9


def test_truncation_is_by_the_length_given(tmp_path: Path) -> None:
    opening = "x" * 400
    rows = [pair("p" * 40, opening + "a", opening + "b")]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    # 440 bytes in common: 110 tokens at four bytes each.
    for length, expected in ((110, [1]), (111, [])):
        assert found(look(data, max_length=length)).get("identical_after_truncation", []) == (
            expected
        )


def test_languages_are_counted(tmp_path: Path) -> None:
    english = "What is the highest mountain that people climb every summer in this country?"
    german = "Welcher ist der höchste Berg, auf den die Leute in diesem Land jeden Sommer steigen?"
    rows = [pair(english, english, english + " " + german[:4])] * 3 + [pair(english, german, "7")]
    languages = look(write_jsonl(tmp_path / "rows.jsonl", rows)).report.languages
    assert {row.name: row.count for row in languages.prompts} == {"en": 4}
    assert {row.name: row.count for row in languages.responses} == {"en": 6, "de": 1, None: 1}
    assert (languages.responses_in_another, languages.responses_compared) == (1, 7)


@pytest.mark.heavy
def test_a_tokenizer_counts_what_training_counts(tiny_base: Path, tmp_path: Path) -> None:
    from plaudit.audit_data import tokens_by
    from plaudit.tokens.encode import Encoder, encode

    rows = [
        {
            "prompt": [{"role": "user", "content": "the quick brown fox"}],
            "chosen": [{"role": "assistant", "content": "jumps over right"}],
            "rejected": [{"role": "assistant", "content": "jumps over lazy dog"}],
        }
    ]
    source = Source(path=str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    comparisons = [comparison for *_, comparison in open_source(source).rows]
    counter = tokens_by(str(tiny_base))
    from plaudit.model.load import load_tokenizer

    tokenizer = load_tokenizer(
        str(tiny_base), revision=None, trust_remote_code=False, pad_token=None
    )
    (tree,) = encode(Encoder(tokenizer=tokenizer, max_length=9999), comparisons)
    (tokens,) = counter.count(comparisons)
    assert isinstance(tree, TokenTree)
    assert isinstance(tokens, TokenCount)
    assert counter.exact
    assert tokens.longest == max(tree.lengths)
    assert tokens.shared == len(tree.prefix)


# --- turns and texts ----------------------------------------------------------------------------


def dialogue(
    *turns: tuple[str, str], response: str = "Fine.", role: str = "assistant"
) -> Comparison:
    return Comparison(
        id="1",
        prompt=tuple(Message(role=r, content=c) for r, c in turns),
        responses=((Message(role=role, content=response),), (Message(role=role, content="No."),)),
        grades=(1.0, 0.0),
        group="0" * 16,
        source="s",
        where="s:1",
    )


@pytest.mark.parametrize(
    ("turns", "role", "expected"),
    [
        ([("user", "Hi")], "assistant", False),
        ([("system", "Be."), ("user", "Hi")], "assistant", False),
        ([("user", "Hi"), ("assistant", "Yes?"), ("user", "So?")], "assistant", False),
        ([("user", "Hi"), ("assistant", "Call"), ("tool", "4"), ("tool", "5")], "assistant", False),
        ([("user", "Hi"), ("system", "Be.")], "assistant", True),
        ([("user", "Hi"), ("user", "Hi?")], "assistant", True),
        ([("user", "Hi"), ("assistant", "Yes?")], "assistant", True),
        ([("user", "Hi")], "user", True),
        ([("human", "Hi")], "assistant", True),
        ([("user", "Hi"), ("tool", "4")], "assistant", True),
    ],
)
def test_role_order(turns: list[tuple[str, str]], role: str, expected: bool) -> None:
    assert PROBLEMS["role_order"](dialogue(*turns, role=role)) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ends <|im_end|>", True),
        ("<|eot_id|><|start_header_id|>user", True),
        ("[INST] do [/INST]", True),
        ("<<SYS>>", True),
        ("done</s>", True),
        ("<start_of_turn>model", True),
        ("<｜end▁of▁sentence｜>", True),
        ("a <s>struck</s> word", False),
        ("if a <s> b", True),
        ("<script>, <span>, <strong> and <sub>", False),
        ("x[INSTANCE] a |> b <| c", False),
    ],
)
def test_special_tokens(text: str, expected: bool) -> None:
    assert measure.has_special_tokens(text) is expected
    assert not measure.has_special_tokens(measure.without_special_tokens(text))
    if not expected:
        assert measure.without_special_tokens(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Fine.\n\nHuman: More?", True),
        ("Assistant: Fine.", True),
        ("Fine.\nHuman nature: a study", False),
        ("The Assistant: a film", False),
        ("### Response: yes", True),
    ],
)
def test_dialogue_markers(text: str, expected: bool) -> None:
    assert PROBLEMS["dialogue_markers"](dialogue(("user", "Hi"), response=text)) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text,\twith tabs\r\nand lines", False),
        ("naïve café, Ünïcödé, Ångström, São Paulo, “quotes” – dash…", False),
        ("Âge, Ã la carte", False),
        ("Â£5 and cafÃ©", True),
        ("itâ€™s", True),
        ("bell \x07", True),
        ("lost �", True),
        ("turned \u202eround", True),
        ("👩‍👩‍👧 and 你好", False),
    ],
)
def test_bad_characters(text: str, expected: bool) -> None:
    assert PROBLEMS["bad_characters"](dialogue(("user", "Hi"), response=text)) is expected


@given(TEXT)
def test_a_repair_is_idempotent(text: str) -> None:
    for repair in REPAIRS.values():
        assert repair(repair(text)) == repair(text)


def test_empty_turns() -> None:
    assert PROBLEMS["empty_turn"](dialogue(("user", "Hi"), ("assistant", " "), ("user", "Hi")))
    assert not PROBLEMS["empty_turn"](dialogue(("user", "Hi"), response="")), (
        "has a reason of its own"
    )
    assert PROBLEMS["empty_turn"](dialogue())


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"prompt": "a", "chosen": "b"', "invalid JSON"),
        (b"\xff\xfe\x00", "invalid UTF-8"),
        (b'{"prompt": "a", "chosen": null, "rejected": "c"}\n', "chosen"),
        (b"", "no rows"),
    ],
)
def test_bad_input_is_one_sentence(content: bytes, sentence: str, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        look(data)


def test_long_lines_are_read(tmp_path: Path) -> None:
    rows = [pair("Why?", "so " * 50_000, "no " * 50_000), pair("Who?", "x" * 50_000, "y")]
    assert found(look(write_jsonl(tmp_path / "rows.jsonl", rows)))["over_length"] == [1, 2]


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAUDIT_CACHE", str(tmp_path / "cache"))
    look(write_jsonl(tmp_path / "rows.jsonl", [pair("How?", "So.", "Not so.")]))
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_audit_loads_no_torch(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [pair("How?", "So.", "Not so.")])
    program = (
        "import sys\n"
        "from plaudit.audit_data import AuditOptions, audit_data\n"
        f"audit_data(AuditOptions(data=[{str(data)!r}], eval_data=[{str(data)!r}]))\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["False"], done.stderr
