"""``plaudit report``, the report of ``plaudit eval --out``, and the page in a real browser."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from plaudit.cli.main import main
from plaudit.evaluate.facts import json_safe, summarise
from plaudit.evaluate.mistakes import with_texts
from plaudit.evaluate.rows import score_rows
from plaudit.evaluate.table import build_table
from plaudit.files import write_json, write_json_lines
from plaudit.types import Comparison, TokenTree
from tests.conftest import pair_rows, write_jsonl

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = "/usr/bin/chromium"
HOSTILE = (
    "<script>window.ran = 1</script>",
    "<img src=http://127.0.0.1:9/x.png onerror='window.ran = 1'>",
    "</div></details></script><svg onload='window.ran = 1'>",
    "**bold** | [link](javascript:window.ran=1) `code` $$x$$ {{ 7 * 7 }} {% raw %}",
    "\u202eturned round\u202c \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "x" * 50_000,
    "nul \x00 and lone \udcff surrogate",
    "",
)


def hostile_comparisons(count: int) -> list[Comparison]:
    generator = random.Random(0)
    return [
        Comparison(
            id=f"{number} {generator.choice(HOSTILE)}",
            prompt=generator.choice(HOSTILE),
            responses=(
                generator.choice(HOSTILE),
                f"needle{number:03d} {generator.choice(HOSTILE)}",
            ),
            grades=(1.0, 0.0),
            group=str(number),
            source=generator.choice(HOSTILE[:3]),
            where=f"pairs.jsonl:{number + 1}",
            metadata={"kind": generator.choice(HOSTILE)},
        )
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation by the real functions, with random rewards, of texts that mean harm."""
    comparisons = hostile_comparisons(120)
    branch = np.ones(4, dtype=np.int32)
    trees = [TokenTree(index=n, prefix=branch, branches=(branch, branch)) for n in range(120)]
    rewards = list(np.random.default_rng(0).normal(size=(120, 2)))
    table = build_table(score_rows("eval", comparisons, trees, rewards))
    block = summarise(table, dataset="eval", chose_checkpoint=False, baselines={})
    facts = {
        "format": 1,
        "plaudit_version": "0",
        "model": HOSTILE[0],
        "data": {"rows": 120, "used": 120, "dropped": {}, "sources": []},
        "eval": block,
        "environment": {"device": HOSTILE[1]},
    }

    def along(comparison: Comparison, response: int) -> list[tuple[str, float]]:
        text = comparison.responses[response]
        return [(piece, float(n)) for n, piece in enumerate([text[:9], "<b>", text[9:900]])]

    numbered = (("eval", number, row) for number, row in enumerate(comparisons))
    folder = tmp_path_factory.mktemp("hostile")
    write_json(folder / "metrics.json", json_safe(facts))
    mistakes = with_texts(block["mistakes"], numbered, along=along)
    write_json_lines(folder / "mistakes.jsonl", mistakes)
    assert main(["report", str(folder)]) == 0
    return folder


@pytest.mark.heavy
def test_the_report_of_a_run_is_rewritten(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("metrics.json", "mistakes.jsonl"):
        shutil.copy(finished_run / name, tmp_path)
    assert main(["report", str(tmp_path)]) == 0
    assert "report.html" in capsys.readouterr().out
    for name in ("report.html", "plots/losses.png"):
        assert (tmp_path / name).read_bytes() == (finished_run / name).read_bytes()


def test_without_a_run_the_report_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "give the folder of a finished run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.heavy
def test_an_evaluation_has_a_report_with_the_reward_along_its_mistakes(
    finished_run: Path, tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", swapped(pair_rows(24, seed=5)))
    out = tmp_path / "out"
    assert main(["eval", str(finished_run), str(data), "--out", str(out)]) == 0
    not_run = "Perturbation tests were not run; plaudit eval --behaviour 200 runs them."
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["eval"]["behaviour"] is None
    assert metrics["eval"]["perturbation_notes"] == [not_run]
    rows = [json.loads(line) for line in (out / "mistakes.jsonl").read_text().splitlines()]
    assert rows
    for row in rows:
        for side in ("better", "worse"):
            along = row[f"along_{side}"]
            assert along["tokens"][-1]["reward"] == pytest.approx(row[f"reward_{side}"], abs=1e-5)
            assert row[f"text_{side}"][0]["content"] in "".join(t["text"] for t in along["tokens"])
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Rises most" in page
    assert not_run in page
    assert (out / "plots" / "reliability.png").is_file()


def swapped(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With the labels the wrong way round, so that a trained model is wrong."""
    return [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]


@pytest.fixture
def browser_page() -> Iterator[Page]:
    sync = pytest.importorskip("playwright.sync_api", reason="needs playwright (the test extra)")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no Chromium at {CHROMIUM}")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 380, "height": 800}, color_scheme="dark")
        browser.close()


def test_a_browser_searches_sorts_and_opens_and_runs_nothing_from_data(
    hostile: Path, browser_page: Page
) -> None:
    said: list[str] = []
    asked: list[str] = []
    browser_page.on("console", lambda message: said.append(message.text))
    browser_page.on("pageerror", lambda error: said.append(str(error)))
    browser_page.on("request", lambda request: asked.append(request.url))
    address = (hostile / "report.html").as_uri()
    browser_page.goto(address)
    width = browser_page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1]

    slices = browser_page.locator("[data-search='Search slices']")
    heading = slices.locator("thead th", has_text="pairs")
    button = heading.get_by_role("button")
    button.focus()
    browser_page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    counts = slices.locator("tbody td:nth-child(3)")
    numbers = [int(text) for text in counts.all_inner_texts()]
    assert numbers == sorted(numbers, reverse=True)
    assert len(set(numbers)) > 1

    mistakes = browser_page.locator(".mistakes > details")
    first = json.loads((hostile / "mistakes.jsonl").read_text().splitlines()[0])
    needle = first["text_worse"].split()[0]
    browser_page.get_by_label("Search mistakes").fill(needle)
    assert mistakes.filter(visible=True).count() == 1
    found = mistakes.filter(visible=True).locator("> summary")
    found.focus()
    browser_page.keyboard.press("Enter")
    tokens = mistakes.filter(visible=True).locator(".tokens").last
    assert needle in tokens.inner_text()
    tokens.focus()
    browser_page.keyboard.press("ArrowRight")
    assert "0.0000" in mistakes.filter(visible=True).locator(".said").last.inner_text()

    assert browser_page.evaluate("window.ran") is None
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [address]
