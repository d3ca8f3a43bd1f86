"""``plaudit eval --suite`` and ``--baseline`` through real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import pair_rows, plaudit, write_jsonl
from tests.evaluation.test_suites import pair

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RewardBench rows whose prompts and answers repeat, and one that is too long to score."""
    rows = [
        {**pair(subset, 0), "prompt": "say it", "chosen": f"it {n} right", "rejected": "it wrong"}
        for n, subset in enumerate(["alpacaeval-easy", "alpacaeval-hard", "donotanswer", "hep-go"])
    ]
    rows += [{**rows[0], "id": 7}, {**rows[0], "chosen": "word " * 2000, "id": 8}]
    folder = tmp_path_factory.mktemp("suite")
    write_jsonl(folder / "filtered.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(
        tmp_path_factory.mktemp("regression") / "held_out.jsonl", pair_rows(60, seed=9)
    )


def test_a_suite_from_a_folder(finished_run: Path, suite: Path, tmp_path: Path) -> None:
    import plaudit as package

    out = tmp_path / "out"
    done = plaudit("eval", finished_run, "--suite", f"rewardbench:{suite}", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((out / "metrics.json").read_text())
    assert json.loads(done.stdout) == metrics
    assert metrics["eval"] is None
    facts = metrics["suites"]["rewardbench"]
    assert (facts["rows"], facts["used"], facts["skipped"]) == (6, 5, {"over_length": 1})
    assert not facts["comparable"]
    assert "1 of 6 rows could not be scored (over_length 1)" in done.stderr
    # The rewards are those of the public interface, row by row, repeated rows included.
    table = pq.read_table(out / "predictions.parquet").to_pylist()
    model = package.load(finished_run)
    expected = [model.score("say it", [f"it {n} right", "it wrong"]) for n in (0, 1, 2, 3, 0)]
    found = [row["reward"] for row in table]
    assert found == pytest.approx([reward for both in expected for reward in both], abs=1e-5)
    assert {row["dataset"] for row in table} == {"rewardbench"}
    scores = {score["name"]: score for score in facts["scores"]}
    right = [good > bad for good, bad in expected]
    assert scores["Safety"]["value"] == float(right[2])
    chat = (100 * (right[0] + right[4]) / 2 + 95 * right[1]) / 195
    assert scores["Chat"]["value"] == pytest.approx(chat)


def test_regression_check(finished_run: Path, data: Path, tmp_path: Path) -> None:
    first = finished_run / "checkpoints" / "checkpoint-6"
    assert first.is_dir()
    same = plaudit("eval", finished_run, data, "--baseline", finished_run, "--out", tmp_path / "a")
    assert same.returncode == 0, same.stderr
    assert "Regression check passed: not significantly worse" in " ".join(same.stderr.split())
    check = json.loads((tmp_path / "a" / "metrics.json").read_text())["regression_check"]
    assert check["passed"]
    assert check["metrics"]["accuracy"]["p"] == 1.0
    # The recorded scores of an evaluation are a baseline too; these are turned into perfect ones.
    table = pq.read_table(tmp_path / "a" / "predictions.parquet")
    import pyarrow as pa

    perfect = table.set_column(
        table.column_names.index("reward"), "reward", pa.compute.multiply(table["grade"], 5.0)
    )
    recorded = tmp_path / "predictions.parquet"
    pq.write_table(perfect, recorded)
    worse = plaudit("eval", first, data, "--baseline", recorded, "--out", tmp_path / "b")
    metrics = json.loads((tmp_path / "b" / "metrics.json").read_text())
    assert metrics["regression_check"]["metrics"]["nll"]["worse"]
    assert worse.returncode == 1, worse.stderr
    assert "Regression check FAILED" in worse.stderr


def test_bad_input_is_one_sentence(
    finished_run: Path, suite: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from plaudit.cli.main import main

    other = write_jsonl(tmp_path / "other.jsonl", pair_rows(3, seed=4))
    plain = tmp_path / "elsewhere"
    plain.mkdir()
    cases: dict[str, list[object]] = {
        "nothing to evaluate on": [finished_run],
        "unknown suite 'x'": [finished_run, "--suite", "x"],
        "--suite pairs is named twice": [finished_run, *["--suite", f"pairs:{data}"] * 2],
        "is not a run folder": [finished_run, data, "--baseline", tmp_path / "none"],
        "eval --gate-metric was renamed to plaudit eval --regression-metric": [
            finished_run,
            "--gate-metric=nll",
        ],
        "eval --behaviour was renamed to plaudit eval --perturbation-tests": [
            finished_run,
            data,
            "--behaviour",
            "9",
        ],
        "unknown metric 'f1'": [finished_run, data, "--regression-metric", "f1"],
        "not evaluated on the same comparisons": [
            finished_run,
            other,
            "--baseline",
            finished_run / "predictions.parquet",
        ],
        "has no file of HHH": [finished_run, "--suite", f"hhh:{plain}"],
    }
    for expected, words in cases.items():
        assert main(["eval", *map(str, words)]) == 2, expected
        said = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        assert expected in said[-1], said
        assert said[-1].startswith("plaudit: ")


def test_training_data_may_have_columns_of_their_own(
    finished_run: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from plaudit.cli.main import main

    rows = [{**row, "question": row["prompt"]} for row in pair_rows(8, seed=9)]
    for row in rows:
        del row["prompt"]
    named = write_jsonl(tmp_path / "named.jsonl", rows)
    words = [finished_run, named, "--columns", "prompt=question", "--train-data", pairs_file]
    assert main(["eval", *map(str, words), "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["eval"]["baselines"]["bag_of_words"] is not None


def test_best_of_on_ranked_rows(finished_run: Path, tmp_path: Path) -> None:
    rows = [
        {
            "id": str(n),
            "prompt": f"say {n}",
            "responses": ["a right", "b wrong", "c"],
            "grades": [2, 0, 1],
        }
        for n in range(6)
    ]
    ranked = write_jsonl(tmp_path / "ranked.jsonl", rows)
    out = tmp_path / "evaluated"
    done = plaudit("eval", finished_run, ranked, "--best-of", "--out", out)
    assert done.returncode == 0, done.stderr
    block = json.loads((out / "metrics.json").read_text())["best_of"]
    assert [point["n"] for point in block["curve"]] == [1, 2, 3]
    assert block["curve"][0]["gold"] == pytest.approx(1.0)
    assert (out / "best_of.png").is_file()
    picked = tmp_path / "picked.jsonl"
    done = plaudit("best-of", finished_run, ranked, "--out", picked)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in picked.read_text().splitlines()]
    for row in found:
        assert row["rewards"][row["best"]] == max(row["rewards"])
        assert row["responses"] == ["a right", "b wrong", "c"]
    # The curve's end is the mean grade of what is picked.
    grades = [row["grades"][row["best"]] for row in found]
    assert block["curve"][-1]["gold"] == pytest.approx(sum(grades) / len(grades))


def test_a_checkpoint_scores_a_file(finished_run: Path, data: Path, tmp_path: Path) -> None:
    checkpoint = finished_run / "checkpoints" / "checkpoint-6"
    done = plaudit("score", checkpoint, data, "--out", tmp_path / "scored.jsonl")
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "scored.jsonl").read_text().splitlines()) == 60
