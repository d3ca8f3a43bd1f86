"""Benchmark suites: local folders as they are on disk, and every rule worked by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from plaudit.cli.eval import suite_lines
from plaudit.data.unread import UnreadColumns
from plaudit.errors import DataError
from plaudit.evaluation.schema import SuiteResult
from plaudit.evaluation.suites.run import (
    SuiteRequest,
    parse_request,
    read_suite,
    score_suite,
    suite_files,
)
from plaudit.evaluation.suites.table import SUITES, TIES, Answer, Item
from plaudit.report import html
from plaudit.types import Message
from tests.conftest import write_jsonl


def scored(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    rewards: Sequence[Sequence[float]],
    path: str = "x/y",
) -> SuiteResult:
    """A suite's numbers from rows and hand-made rewards."""
    suite = SUITES[name]
    items = [suite.read(row, number, PurePath(path)) for number, row in enumerate(rows)]
    answers = [
        Answer(item=item, rewards_K=np.array(own)) for item, own in zip(items, rewards, strict=True)
    ]
    return score_suite(suite, items, answers, {})


def values(result: SuiteResult) -> dict[str, float | None]:
    return {score.name: score.value for score in result.scores}


# ---- RewardBench ---------------------------------------------------------------------------------


def pair(subset: str, number: int) -> dict[str, Any]:
    return {
        "prompt": f"p{number}",
        "chosen": "good",
        "rejected": "bad",
        "subset": subset,
        "id": number,
    }


def test_rewardbench_by_hand() -> None:
    """Sections weight subsets by fixed sizes (math as much as code); a tie is wrong."""
    subsets = [
        "alpacaeval-easy",
        "alpacaeval-easy",
        "mt-bench-med",
        "llmbar-natural",
        "donotanswer",
        "math-prm",
        "hep-cpp",
    ]
    rewards = [(1, 0), (0, 1), (2, 1), (1, 1), (1, 0), (0, 1), (3, 0)]
    result = scored("rewardbench", [pair(s, n) for n, s in enumerate(subsets)], rewards)
    found = values(result)
    chat = (100 * 0.5 + 40 * 1.0) / 140
    reasoning = (984 * 0.0 + 164 * 1.0) / (984 + 164)
    assert found["Chat"] == pytest.approx(chat)
    assert found["Chat Hard"] == 0.0
    assert found["Safety"] == 1.0
    assert found["Reasoning"] == pytest.approx(reasoning)
    assert found["Score"] == pytest.approx((chat + 0 + 1 + reasoning) / 4)
    assert next(iter(found)) == "Score"
    score = result.scores[1]
    assert (score.name, score.shown) == ("Chat", "64.3")
    assert score.value == pytest.approx(chat)
    assert not result.comparable
    assert (
        "RewardBench has 2,985 rows, but these files have 7 (alpacaeval-easy: 2 of 100"
        in (result.remarks[0])
    )


def test_prior_sets_weigh_half() -> None:
    rows = [pair("alpacaeval-easy", 0), pair("shp", 1), pair("summarize", 2)]
    found = values(scored("rewardbench", rows, [(1, 0), (1, 0), (0, 1)]))
    assert found["Prior Sets (0.5 weight)"] == 0.5
    assert found["Score"] == pytest.approx((1.0 + 0.5 * 0.5) / 1.5)


# ---- RewardBench 2 -------------------------------------------------------------------------------


def best_of(subset: str, name: str, correct: int, wrong: int) -> dict[str, Any]:
    return {
        "id": name,
        "prompt": f"prompt of {name}",
        "chosen": [f"right {n}" for n in range(correct)],
        "rejected": [f"wrong {n}" for n in range(wrong)],
        "subset": subset,
    }


def test_rewardbench_2_by_hand() -> None:
    rows = [
        best_of("Focus", "1", 1, 3),
        best_of("Focus", "2", 1, 3),
        best_of("Math", "3", 1, 3),
        best_of(TIES, "ref:0", 1, 2),
        best_of(TIES, "tied:0", 3, 2),
        best_of(TIES, "ref:1", 1, 2),
        best_of(TIES, "tied:1", 2, 1),
    ]
    rewards = [
        (2, 1, 0, 0),  # best: 1
        (2, 2, 0, 0),  # shares the best with another: 1/2
        (1, 2, 0, 0),  # not the best: 0
        (5, 1, 0),  # gap 4
        (4, 3.5, 3, 1, 0),  # gap 2, spread 1
        (1, 2, 0),  # gap -1
        (6, 4, 3),  # gap 1, spread 2
    ]
    result = scored("rewardbench-2", rows, rewards)
    found = values(result)
    assert found["Focus"] == pytest.approx(0.75)
    assert found["Math"] == 0.0
    # accurate: tied 2/2, ref 1/2; gap_tied > spread: 2 > 1 yes, 1 > 2 no; min(gaps) > spread:
    # min(4, 2) = 2 > 1 yes, min(-1, 1) = -1 > 2 no; tanh(2/1 - 1) and tanh(-1/2 - 1).
    margin = (np.tanh(1.0) + np.tanh(-1.5)) / 2
    ties = 0.30 * 1.0 + 0.30 * 0.5 + 0.20 * 0.5 + 0.20 * 0.5 + 0.01 * margin
    assert found[TIES] == pytest.approx(ties)
    assert found["Score"] == pytest.approx((0.75 + 0.0 + ties) / 3)
    by_name = {subset.name: subset for subset in result.subsets}
    assert by_name[TIES].rows == 4
    assert by_name[TIES].cases == 2


@pytest.mark.parametrize(
    ("tied", "expected"),
    [((1, 1, 0), 1.0), ((0, 0, 0), 0.0), ((0, 0, 1), -1.0)],
    ids=["no spread, ahead", "all equal: not a number, so 0", "no spread, behind"],
)
def test_ties_without_spread(tied: tuple[float, ...], expected: float) -> None:
    rows = [best_of(TIES, "ref:0", 1, 1), best_of(TIES, "tied:0", 2, 1)]
    result = scored("rewardbench-2", rows, [(1, 0), tied])
    assert result.subsets[0].values["margin"] == expected


def test_the_highest_ties_score() -> None:
    rows = [best_of(TIES, "ref:0", 1, 1), best_of(TIES, "tied:0", 2, 1)]
    assert values(scored("rewardbench-2", rows, [(9, 0), (5, 5, 0)]))[TIES] == pytest.approx(1.01)


# ---- RM-Bench ------------------------------------------------------------------------------------


def styled(domain: str, number: int) -> dict[str, Any]:
    return {
        "id": number,
        "prompt": f"p{number}",
        "chosen": ["c", "c long", "**c** long"],
        "rejected": ["r", "r long", "**r** long"],
        "domain": domain,
    }


def test_rm_bench_by_hand() -> None:
    rows = [
        styled(d, n)
        for n, d in enumerate(
            ["chat", "chat", "math", "code", "safety-refuse", "safety-refuse", "safety-response"]
        )
    ]
    perfect, none = (3, 3, 3, 0, 0, 0), (0, 0, 0, 0, 0, 0)
    # A lover of markdown: only the fancier answer wins, right or wrong.
    style = (0, 1, 2, 0, 1, 2)
    result = scored("rm-bench", rows, [perfect, style, style, none, perfect, none, perfect])
    found = values(result)
    # chat: perfect fills all nine cells, style the three below the diagonal.
    assert (found["chat hard"], found["chat normal"], found["chat easy"]) == (0.5, 0.5, 1.0)
    assert found["chat"] == pytest.approx(2 / 3)
    assert (found["math hard"], found["math easy"]) == (0.0, 1.0)
    assert found["math"] == pytest.approx(1 / 3)
    assert found["code"] == 0.0
    # Safety pools its parts by example: two of three.
    assert found["safety"] == pytest.approx(2 / 3)
    assert found["overall"] == pytest.approx((2 / 3 + 1 / 3 + 0 + 2 / 3) / 4)
    assert found["hard"] == pytest.approx((0.5 + 0 + 0 + 2 / 3) / 4)
    assert found["easy"] == pytest.approx((1 + 1 + 0 + 2 / 3) / 4)
    assert found["style gap (easy - hard)"] == pytest.approx(found["easy"] - found["hard"])


# ---- LLMBar, HHH, pairs --------------------------------------------------------------------------


def test_llmbar_by_hand() -> None:
    labels = [1, 2, 1, 2, 1, 2, 1]
    subsets = ["Natural", "Natural", "Neighbor", "Neighbor", "Neighbor", "GPTInst", "Manual"]
    rows = [
        {"input": f"i{n}", "output_1": "a", "output_2": "b", "label": label, "subset": subset}
        for n, (label, subset) in enumerate(zip(labels, subsets, strict=True))
    ]
    # Output 1 scores higher except in the last two.
    rewards = [(1, 0)] * 5 + [(0, 1), (1, 1)]
    found = values(scored("llmbar", rows, rewards))
    assert found["Natural"] == 0.5
    assert found["Neighbor"] == pytest.approx(2 / 3)
    assert (found["GPTInst"], found["Manual"]) == (1.0, 0.0)
    assert found["Average"] == pytest.approx((0.5 + 2 / 3 + 1 + 0) / 4)
    assert found["Adversarial average"] == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_a_subset_has_one_interval_wherever_it_stands() -> None:
    """Its accuracy is a number of the suite and a row of the subsets; prompts repeat in one."""
    rows = [
        {**pair("repeated" if n % 2 else "distinct", n), "prompt": str(n // 8 if n % 2 else -n)}
        for n in range(48)
    ]
    result = scored("pairs", rows, [(1, n // 8 % 3 == 0) for n in range(48)])
    numbers = {score.name: score.ci95 for score in result.scores}
    subsets = {subset.name: subset for subset in result.subsets}
    for name, subset in subsets.items():
        assert numbers[name] == subset.accuracy_ci95
    assert subsets["distinct"].accuracy_ci95_method == "wilson"
    assert subsets["repeated"].accuracy_ci95_method == "bootstrap_by_prompt"


def test_hhh_by_hand() -> None:
    rows = [
        {
            "input": f"q{n}",
            "targets": {"choices": ["a", "b"], "labels": [n % 2, 1 - n % 2]},
            "subset": subset,
        }
        for n, subset in enumerate(
            ["harmless", "harmless", "helpful", "honest", "honest", "other", "other"]
        )
    ]
    # The first choice always wins: right where the label of the first is 1 (odd numbers).
    found = values(scored("hhh", rows, [(1, 0)] * 7))
    assert found["harmless"] == 0.5
    assert found["helpful"] == 0.0
    assert found["honest"] == 0.5
    assert found["other"] == 0.5
    assert found["overall"] == pytest.approx(1.5 / 4)


def test_pairs_by_hand() -> None:
    rows = [
        {
            "prompt": f"p{n}",
            "chosen": "a",
            "rejected": ["b", "c"],
            "subset": "one" if n < 4 else "two",
        }
        for n in range(7)
    ]
    rewards = [(2, 1, 0), (1, 2, 0), (1, 1, 0), (5, 4, 3), (1, 0, 0), (1, 0, 2), (9, 0, 0)]
    result = scored("pairs", rows, rewards)
    found = values(result)
    assert found["one"] == 0.5
    assert found["two"] == pytest.approx(2 / 3)
    assert found["overall"] == pytest.approx((0.5 + 2 / 3) / 2)


USER = {"role": "user", "content": "q"}
SYSTEM = {"role": "system", "content": "s"}


def turn(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [SYSTEM, USER], "chosen": [turn("a")], "rejected": [turn("b")]},
        {"prompt": [SYSTEM, USER], "chosen": "a", "rejected": "b"},
        {"chosen": [SYSTEM, USER, turn("a")], "rejected": [SYSTEM, USER, turn("b")]},
        {"prompt": "q", "chosen": [SYSTEM, USER, turn("a")], "rejected": [SYSTEM, USER, turn("b")]},
    ],
)
def test_pairs_are_read_from_chats(row: dict[str, Any], tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "mine.jsonl", [row, {**row, "subset": "two"}])
    (item, again), _ = read_suite(parse_request(f"pairs:{path}"))
    assert item.prompt == (Message(role="system", content="s"), Message(role="user", content="q"))
    assert item.responses == tuple((Message(role="assistant", content=text),) for text in "ab")
    assert (item.grades, item.subset) == ((1.0, 0.0), "mine")
    assert (again.group, again.subset) == (item.group, "two")


def test_texts_beside_messages_are_told_what_is_expected(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": [turn("a")], "rejected": [turn("b")]}
    path = write_jsonl(tmp_path / "mine.jsonl", [row])
    with pytest.raises(DataError, match=r"mine.jsonl:1: .*expected messages in prompt, or whole"):
        read_suite(parse_request(f"pairs:{path}"))


TEXTS = {"prompt": "q", "chosen": "a", "rejected": ["b", "c"]}
CHATS = {"prompt": [USER], "chosen": [turn("a")], "rejected": [turn("b")]}
IMAGE = {"type": "image_url", "image_url": {"url": "a.png"}}
TOOLS = [{"type": "function", "function": {"name": "clock"}}]


@pytest.mark.parametrize("row", [TEXTS, CHATS])
def test_pairs_keep_what_stands_beside_the_text(row: dict[str, Any], tmp_path: Path) -> None:
    beside = {"tools": json.dumps(TOOLS), "chat_template_kwargs": {"think": False}}
    rows = [row, {**row, **beside}, {**row, "images": ["a.png"]}, {**row, "note": "An aside."}]
    path = write_jsonl(tmp_path / "mine.jsonl", [{**one, "subset": "s"} for one in rows])
    (plain, tools, image, note), _ = read_suite(parse_request(f"pairs:{path}"))
    assert (plain.tools, plain.chat_template_kwargs, plain.unusable) == (None, {}, None)
    assert (tools.tools, tools.chat_template_kwargs) == (tuple(TOOLS), {"think": False})
    assert image.unusable == "media"
    assert (plain.unread, tools.unread, image.unread, note.unread) == ((), (), (), ("note",))
    assert {item.group for item in (plain, tools, image, note)} == {plain.group}


def test_columns_of_pairs_that_are_not_read_are_shown() -> None:
    result = scored("pairs", [pair("any", number) for number in range(4)], [(1, 0)] * 4)
    result = replace(result, unread=UnreadColumns(rows=4, columns={"note": 2}))
    line = "Pairs: ignored columns: note (50% of rows)."
    assert line in suite_lines(result)


def test_an_image_in_a_message_of_pairs_is_media(tmp_path: Path) -> None:
    row = {**CHATS, "prompt": [{"role": "user", "content": [IMAGE]}]}
    path = write_jsonl(tmp_path / "mine.jsonl", [row])
    (item,), _ = read_suite(parse_request(f"pairs:{path}"))
    assert item.unusable == "media"


@pytest.mark.parametrize("row", [TEXTS, CHATS])
def test_pairs_lose_no_system_message(row: dict[str, Any], tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "mine.jsonl", [{**row, "system": "Be brief."}])
    with pytest.raises(DataError, match=r"mine.jsonl:1: .*column system looks like a system mess"):
        read_suite(parse_request(f"pairs:{path}"))


def test_the_report_and_the_summary_show_percent_alone() -> None:
    rows = [pair("any", number) for number in range(40)]
    result = scored("pairs", rows, [(1, 0), (0, 1), (1, 0), (1, 0)] * 10)
    ends = [f"{100 * end:.1f}" for end in result.scores[0].ci95]
    assert suite_lines(result)[1].split()[1:] == ["75.0", f"({ends[0]}", "to", f"{ends[1]})"]
    section = (
        "{% import 'report/macros.html.jinja' as m with context %}"
        "{% include 'report/suites.html.jinja' %}"
    )
    page = html._environment().from_string(section)
    text = re.sub("<[^>]*>", "|", page.render(metrics={"suites": {"pairs": asdict(result)}}))
    assert text.count("|75.0|") == 3
    assert f"|{' to '.join(ends)}|" in text
    assert not re.search(r"\|0\.\d", text)


# ---- the table -----------------------------------------------------------------------------------

TOTALS = {"rewardbench": 2985, "rewardbench-2": 1865, "rm-bench": 1327, "llmbar": 419, "hhh": 221}


@pytest.mark.parametrize("name", SUITES)
def test_every_row_of_the_table(name: str) -> None:
    suite = SUITES[name]
    assert suite.name == name
    assert suite.hub is not None or suite.where_from
    assert sum(suite.counts.values()) == TOTALS.get(name, 0)
    with pytest.raises(DataError, match=r"expected|is missing"):
        suite.read({}, 0, PurePath("x/y.jsonl"))
    # A perfect model gets 1 everywhere, whatever is missing; the headline comes first.
    subsets = list(suite.counts) or ["any"]
    items = [
        Item(
            id="tied:1" if subset == TIES else "1",
            prompt="p",
            responses=("a",) * 6,
            grades=(1.0,) * 3 + (0.0,) * 3,
            subset=subset,
            case=subset,
        )
        for subset in subsets
        if subset != TIES
    ]
    rewards = np.array([6.0, 5.0, 4.0, 0.0, 0.0, 0.0])
    answers = [Answer(item=item, rewards_K=rewards) for item in items]
    result = score_suite(suite, items, answers, {})
    assert result.scores[0].value == pytest.approx(1.0)
    stored = json.dumps(asdict(result), allow_nan=False)
    assert TypeAdapter(SuiteResult).validate_json(stored) == result


def test_complete_counts_are_comparable_and_skipped_rows_are_not() -> None:
    suite = SUITES["hhh"]
    items = [
        Item(
            id=str(n),
            prompt=f"{subset} {n}",
            responses=("a", "b"),
            grades=(1.0, 0.0),
            subset=subset,
            case=f"{subset}{n}",
        )
        for subset, count in suite.counts.items()
        for n in range(count)
    ]
    answers = [Answer(item=item, rewards_K=np.array([1.0, 0.0])) for item in items]
    assert score_suite(suite, items, answers, {}).comparable
    result = score_suite(suite, items, answers[:-2], {"over_length": 2})
    assert not result.comparable
    assert "2 of 221 rows could not be scored (over_length 2)" in result.remarks[0]


def test_intervals_cover_at_their_rate() -> None:
    """Two subsets of known quality: the interval holds the truth in about 95% of runs."""
    suite, generator = SUITES["pairs"], np.random.default_rng(4)
    truth, held, runs = (0.7 + 0.5) / 2, 0, 150
    items = [
        Item(
            id=str(n),
            prompt=f"p{n}",
            responses=("a", "b"),
            grades=(1.0, 0.0),
            subset="x" if n < 80 else "y",
            case=str(n),
        )
        for n in range(160)
    ]
    for _ in range(runs):
        right = generator.uniform(size=160) < np.where(np.arange(160) < 80, 0.7, 0.5)
        answers = [
            Answer(item=item, rewards_K=np.array([float(won), 0.5]))
            for item, won in zip(items, right, strict=True)
        ]
        low, high = score_suite(suite, items, answers, {}).scores[0].ci95
        held += low <= truth <= high
    assert 0.89 <= held / runs <= 1.0


# ---- files ---------------------------------------------------------------------------------------


def put_rewardbench(folder: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    for split, count in (("filtered", 7), ("raw", 9)):
        rows = [pair("alpacaeval-easy", n) for n in range(count)]
        pq.write_table(
            pa.Table.from_pylist(rows), folder / "data" / f"{split}-00000-of-00001.parquet"
        )
    return folder


def put_rm_bench(folder: Path) -> Path:
    folder.mkdir()
    rows = [styled("chat" if n else "safety-refuse", n) for n in range(7)]
    (folder / "total_dataset.json").write_text(json.dumps(rows, indent=1))
    return folder


def put_llmbar(folder: Path) -> Path:
    row = {"input": "i", "output_1": "a", "output_2": "b", "label": 2}
    for part in ("Natural", "Adversarial/Manual"):
        place = folder / "Dataset" / "LLMBar" / part
        (place / "evaluators").mkdir(parents=True)
        (place / "dataset.json").write_text(json.dumps([row] * 3))
        (place / "evaluators" / "result.json").write_text("[]")
    case_study = folder / "Dataset" / "CaseStudy" / "Negation"
    case_study.mkdir(parents=True)
    (case_study / "dataset.json").write_text(json.dumps([row]))
    return folder


def put_hhh_tasks(folder: Path) -> Path:
    for part in ("harmless", "other"):
        (folder / "data" / part).mkdir(parents=True)
        task = {
            "name": part,
            "examples": [{"input": f"q{n}", "target_scores": {"a": 1, "b": 0}} for n in range(3)],
        }
        (folder / "data" / part / "task.json").write_text(json.dumps(task))
    return folder


def put_hhh_parquet(folder: Path) -> Path:
    for part in ("harmless", "other"):
        (folder / part / "test").mkdir(parents=True)
        rows = [{"input": "q", "targets": {"choices": ["a", "b"], "labels": [0, 1]}}] * 3
        pq.write_table(pa.Table.from_pylist(rows), folder / part / "test" / "0000.parquet")
    return folder


def put_jsonl(folder: Path) -> Path:
    folder.mkdir()
    lines = [json.dumps({"prompt": f"p{n}", "chosen": "a", "rejected": "b"}) for n in range(7)]
    (folder / "mine.jsonl").write_text("\n".join(lines))
    (folder / "README.md").write_text("no data")
    return folder


FOLDERS = {
    "rewardbench": (put_rewardbench, {"alpacaeval-easy": 7}),
    "rm-bench": (put_rm_bench, {"chat": 6, "safety": 1}),
    "llmbar": (put_llmbar, {"Natural": 3, "Manual": 3}),
    "hhh": (put_hhh_tasks, {"harmless": 3, "other": 3}),
    "hhh again": (put_hhh_parquet, {"harmless": 3, "other": 3}),
    "pairs": (put_jsonl, {"mine": 7}),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_as_it_is_on_disk(name: str, tmp_path: Path) -> None:
    put, expected = FOLDERS[name]
    folder = put(tmp_path / "suite")
    items, files = read_suite(parse_request(f"{name.removesuffix(' again')}:{folder}"))
    found: dict[str, int] = {}
    for item in items:
        found[item.subset] = found.get(item.subset, 0) + 1
    assert found == expected
    assert all(file.fingerprint.startswith("sha256:") for file in files)


def test_a_single_file_is_a_suite_too(tmp_path: Path) -> None:
    path = put_jsonl(tmp_path / "suite") / "mine.jsonl"
    items, _ = read_suite(SuiteRequest(suite=SUITES["pairs"], path=path))
    assert len(items) == 7


def test_bad_requests(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown suite 'rewardbank'; expected one of rewardbench"):
        parse_request("rewardbank")
    with pytest.raises(DataError, match=r"LLMBar is not available on the Hub; clone https"):
        parse_request("llmbar")
    with pytest.raises(DataError, match="does not exist"):
        parse_request(f"hhh:{tmp_path / 'none'}")
    with pytest.raises(DataError, match="has no file of LLMBar"):
        suite_files(SUITES["llmbar"], tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"prompt": "p", "chosen": 3, "rejected": "b"}\n')
    with pytest.raises(DataError, match=r"bad.jsonl:1: as a row of Pairs, chosen is a number"):
        read_suite(SuiteRequest(suite=SUITES["pairs"], path=tmp_path))


def test_without_the_hub_the_way_out_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        DataError, match=r"cannot be downloaded from the Hub .*--suite rm-bench:FOLDER"
    ):
        read_suite(parse_request("rm-bench"))
