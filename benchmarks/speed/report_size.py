"""How large is the report of an evaluation, and how long does a browser take to open it?

    python -m benchmarks.speed.report_size [--pairs 20000] [--rounds 5] [--chromium PATH]

An evaluation by the real functions with random rewards: texts, slices by a dozen metadata columns,
perturbed responses, the most confident mistakes with long texts and per-token rewards. Only the
model is left out. Every opening is a browser process of its own, without network and cache; seconds
are from the start of the navigation to the end of the page's load event, and to the first frame.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.results import SEED, Shown, console, median, parser, show
from benchmarks.common.results import recorder as start_recorder
from plaudit.data.perturb.run import KINDS_AND_NAMES
from plaudit.evaluate_model import Evaluation, write_evaluation
from plaudit.evaluation.analysis.error_analysis import with_texts
from plaudit.evaluation.analysis.perturbations import Perturbed, Probed
from plaudit.evaluation.schema import DataUse, RecordedEvaluation
from plaudit.evaluation.summary import EvaluationContext, summarise
from plaudit.evaluation.table import ScoredSet, pairs, read_held_out
from plaudit.report.record import describe_environment
from plaudit.types import Comparison, FloatArray, TokenReward, TokenTree

QUESTION = "report_size"
COLUMNS = 12
WORDS = ["the", "reward", "is", "of", "and", "which", "answer", "never", "right", "blue", "seven"]


def comparisons(count: int, generator: random.Random) -> list[Comparison]:
    """Pairs of a few hundred characters, every fiftieth of 50,000, with a dozen labels each."""

    def words(number: int) -> str:
        return " ".join(generator.choices(WORDS, k=number))

    return [
        Comparison(
            id=f"row-{number}",
            prompt=words(generator.randint(5, 60)),
            responses=(
                words(9000 if number % 50 == 0 else generator.randint(5, 150)),
                words(generator.randint(5, 150)),
            ),
            grades=(1.0, 0.0),
            group=str(number),
            source=f"source {number % 7}",
            where=f"pairs.jsonl:{number + 1}",
            metadata={
                f"label {column}": f"value {generator.randrange(25)}" for column in range(COLUMNS)
            },
        )
        for number in range(count)
    ]


def walk(comparison: Comparison, response: int) -> Sequence[TokenReward]:
    """A random reward along a response, a word a token."""
    turns = comparison.responses[response]
    assert isinstance(turns, str)
    tokens = [f"{word} " for word in turns.split()]
    steps = np.random.default_rng(len(tokens)).normal(0, 0.2, len(tokens)).cumsum()
    return [
        TokenReward(text=text, reward=reward)
        for text, reward in zip(tokens, steps.tolist(), strict=True)
    ]


def perturbed(generator: np.random.Generator, responses: int = 200) -> Probed:
    """Every known perturbation of as many responses, with random rewards."""
    rewards = generator.normal(size=(len(KINDS_AND_NAMES), responses, 3))
    return Probed(
        perturbed=[
            Perturbed(kind=kind, name=name, original=one[0], other=one[1], perturbed=one[2])
            for (kind, name), found in zip(KINDS_AND_NAMES, rewards.tolist(), strict=True)
            for one in found
        ],
        responses=responses,
        skipped={},
        seed=SEED,
    )


def evaluation(count: int) -> Evaluation:
    """What ``plaudit eval`` would hand over, its rewards drawn."""
    held_out = comparisons(count, random.Random(SEED))
    generator = np.random.default_rng(SEED)
    rewards: list[FloatArray] = list(generator.normal(size=(count, 2)) + np.array([0.6, 0.0]))
    branch = np.ones(100, dtype=np.int32)
    trees = [TokenTree(index=n, prefix=branch, branches=(branch, branch)) for n in range(count)]
    table = read_held_out(
        [ScoredSet(dataset="eval", comparisons=held_out, trees=trees, rewards=rewards)]
    ).table
    block = summarise(
        table,
        EvaluationContext(
            dataset="eval",
            baselines={"longer": generator.normal(size=len(pairs(table))), "bag_of_words": None},
            perturbations=perturbed(generator),
            seed=SEED,
        ),
    )
    metrics = RecordedEvaluation(
        plaudit_version="benchmark",
        model="random rewards",
        data=DataUse(rows=count, used=count, dropped={}, sources=()),
        eval=block,
        environment=describe_environment("cpu"),
    )
    numbered = (("eval", number, row) for number, row in enumerate(held_out))
    return Evaluation(
        metrics=metrics,
        table=table,
        mistakes=tuple(with_texts(block.mistakes, numbered, rewards_of=walk)),
    )


def opening(page: Path, chromium: str) -> dict[str, float]:
    """Seconds until the page is loaded, and until its first frame with something in it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.goto(page.as_uri())
        tab.wait_for_function("performance.getEntriesByType('paint').length > 0")
        milliseconds = tab.evaluate(
            "[performance.getEntriesByType('navigation')[0].loadEventEnd,"
            " performance.getEntriesByName('first-contentful-paint')[0].startTime]"
        )
        browser.close()
    loaded, painted = (value / 1000 for value in milliseconds)
    return {"loaded_seconds": loaded, "painted_seconds": painted}


def table(record: dict[str, Any]) -> Shown:
    """One line per evaluation."""
    rows = [
        (
            f"{case['pairs']:,}",
            f"{case['slices']:,}",
            f"{case['bytes'] / 1e6:.2f} MB",
            f"{case['writing_seconds']:.1f} s",
            f"{median([one['loaded_seconds'] for one in case['openings']]):.2f} s",
            f"{max(one['loaded_seconds'] for one in case['openings']):.2f} s",
            f"{median([one['painted_seconds'] for one in case['openings']]):.2f} s",
        )
        for case in record["cases"]
    ]
    headings = (
        "pairs",
        "slices",
        "file size",
        "write time",
        "load, median",
        "load, slowest",
        "first paint",
    )
    return Shown(headings, tuple(rows))


def main() -> None:
    """Parse, evaluate random rewards, write the folder, open its report again and again."""
    made = parser(__doc__, QUESTION)
    made.add_argument("--pairs", type=int, nargs="+", default=[2000, 20000])
    made.add_argument("--chromium", default="/usr/bin/chromium")
    made.add_argument("--keep", type=Path, help="keep the folders of the evaluations here")
    made.set_defaults(rounds=5)
    arguments = made.parse_args()
    recorder = start_recorder(QUESTION, arguments)
    with tempfile.TemporaryDirectory() as temporary:
        for count in arguments.pairs:
            found = evaluation(count)
            folder = (arguments.keep or Path(temporary)) / str(count)
            began = time.perf_counter()
            write_evaluation(folder, found)
            seconds = time.perf_counter() - began
            page = folder / "report.html"
            openings = [opening(page, arguments.chromium) for _ in range(arguments.rounds)]
            recorder.add(
                {
                    "pairs": count,
                    "slices": len(found.metrics.eval.slices) if found.metrics.eval else 0,
                    "bytes": page.stat().st_size,
                    "writing_seconds": seconds,
                    "openings": openings,
                }
            )
            console.log(f"{count:,} pairs: {page.stat().st_size / 1e6:.2f} MB, {openings}")
    show(table(recorder.record()))


if __name__ == "__main__":
    main()
