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
from plaudit.evaluation.analysis.error_analysis import with_texts
from plaudit.evaluation.schema import DataUse, RecordedEvaluation, json_safe
from plaudit.evaluation.summary import EvaluationContext, summarise
from plaudit.evaluation.table import ScoredSet, read_held_out
from plaudit.report.html import write_report
from plaudit.report.preview import write_preview
from plaudit.storage.atomic import write_json, write_json_lines
from plaudit.types import Comparison, ComparisonPreview, TokenPreview, TokenReward, TokenTree
from tests.conftest import pair_rows, write_jsonl

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = "/usr/bin/chromium"
GOLDEN = Path(__file__).parents[1] / "goldens" / "run" / "metrics.json"
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
    table = read_held_out(
        [ScoredSet(dataset="eval", comparisons=comparisons, trees=trees, rewards=rewards)]
    ).table
    block = summarise(table, EvaluationContext(dataset="eval"))
    recorded = RecordedEvaluation(
        plaudit_version="0",
        model=HOSTILE[0],
        data=DataUse(rows=120, used=120, dropped={}, sources=()),
        eval=block,
        environment={"device": HOSTILE[1]},
    )

    def rewards_of(comparison: Comparison, response: int) -> list[TokenReward]:
        text = str(comparison.responses[response])
        pieces = [text[:9], "<b>", text[9:900]]
        return [TokenReward(text=piece, reward=float(n)) for n, piece in enumerate(pieces)]

    numbered = (("eval", number, row) for number, row in enumerate(comparisons))
    folder = tmp_path_factory.mktemp("hostile")
    write_json(folder / "metrics.json", json_safe(recorded))
    mistakes = with_texts(block.mistakes, numbered, rewards_of=rewards_of)
    write_json_lines(folder / "mistakes.jsonl", map(json_safe, mistakes))
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
    not_run = (
        "Perturbation tests were not run; run them with plaudit eval --perturbation-tests 200."
    )
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["eval"]["perturbations"] is None
    assert metrics["eval"]["perturbation_notes"] == [not_run]
    rows = [json.loads(line) for line in (out / "mistakes.jsonl").read_text().splitlines()]
    assert rows
    for row in rows:
        for side in ("better", "worse"):
            steps = row[f"token_rewards_{side}"]
            assert steps["tokens"][-1]["reward"] == pytest.approx(row[f"reward_{side}"], abs=1e-5)
            assert row[f"text_{side}"][0]["content"] in "".join(t["text"] for t in steps["tokens"])
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Largest rise" in page
    assert not_run in page
    assert (out / "plots" / "reliability.png").is_file()


def swapped(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With the labels the wrong way round, so that a trained model is wrong."""
    return [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sync = pytest.importorskip("playwright.sync_api", reason="needs playwright (the test extra)")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no Chromium at {CHROMIUM}")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def browser_page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 380, "height": 800}, color_scheme="dark")
    yield page
    page.close()


@pytest.mark.slow
def test_a_browser_searches_sorts_and_opens_and_runs_nothing_from_data(
    hostile: Path, browser_page: Page
) -> None:
    said: list[str] = []
    asked: list[str] = []
    browser_page.on("console", lambda message: said.append(message.text))
    browser_page.on("pageerror", lambda error: said.append(str(error)))
    browser_page.on("request", lambda request: asked.append(request.url))
    address = (hostile / "report.html").as_uri()
    # An address of a part opens it, wherever it is folded away.
    browser_page.goto(f"{address}#eval-slices")
    assert browser_page.locator(".fold[open]").count() == 1
    browser_page.get_by_role("link", name="Mistakes", exact=True).click()

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
    rows = slices.locator("tbody tr")
    total = rows.count()
    assert rows.filter(visible=True).count() == 10 < total
    slices.get_by_role("button", name=f"Show all {total}").click()
    assert rows.filter(visible=True).count() == total

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
    assert [url.partition("#")[0] for url in asked if not url.startswith("data:")] == [address]


# ---- looks ---------------------------------------------------------------------------------------

TOO_WIDE = """() => [...document.querySelectorAll("body *")].filter((element) => {
    const box = element.getBoundingClientRect();
    const inside = element.closest(".scroll, svg") && !element.matches(".scroll, svg");
    return box.width && !inside && box.right > document.documentElement.clientWidth + 0.5;
  }).map((element) => element.outerHTML.slice(0, 200))"""
"""Elements wider than the window, but for what scrolls by itself and what is drawn."""

CUT_TEXTS = """() => [...document.querySelectorAll("svg.plot")].flatMap((svg) => {
    const all = svg.getBoundingClientRect();
    return [...svg.querySelectorAll("text")].filter((text) => {
      const box = text.getBoundingClientRect();
      return box.left < all.left - 1 || box.right > all.right + 1
        || box.top < all.top - 1 || box.bottom > all.bottom + 1;
    }).map((text) => `${svg.getAttribute("aria-label")}: ${text.textContent}`);
  })"""
"""Texts of figures that reach out of them, with the letters of the browser."""

SMALLEST_LETTERS = """() => Math.min(...[...document.querySelectorAll("svg.plot text")].map(
    (text) => parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a || Infinity))"""
"""Pixels of the smallest letters of a figure that are not turned round."""

BROKEN_WORDS = """() => {
    const walk = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
    const broken = [];
    for (let node = walk.nextNode(); node; node = walk.nextNode()) {
      if (!/^\\s*\\S{1,16}\\s*$/.test(node.data) || !node.parentNode.closest("td, th")) continue;
      const range = document.createRange();
      range.selectNodeContents(node);
      const tops = [...range.getClientRects()].map((box) => Math.round(box.top));
      if (new Set(tops).size > 1) broken.push(node.data);
    }
    return broken;
  }"""
"""Words of a table, of no more than 16 letters, on more than one line."""

OPEN_ALL = "for (const part of document.querySelectorAll('details')) part.open = true"


SCRIPTS = (
    "今日は晴れです。",
    "오늘은 맑습니다.",
    "باريس هي عاصمة فرنسا",
    "w" * 300,
    "a plain answer",
)


@pytest.fixture(scope="module")
def pages(hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Reports of a run with test data and of an evaluation, an audit, and a preview."""
    folder = tmp_path_factory.mktemp("pages")
    shutil.copy(GOLDEN, folder)
    rows = [
        row | {"chosen": f"{SCRIPTS[n % 5]} {n}", "rejected": SCRIPTS[n % 4], "prompt": f"{n}?"}
        for n, row in enumerate(pair_rows(60))
    ]
    data = write_jsonl(folder / "pairs_of_a_long_name.jsonl", [*rows, rows[0]])
    assert main(["data", "audit", str(data), "--out", str(folder / "audit")]) == 0
    tokens = tuple(
        TokenPreview(id=n, text=f" {text[:300]}", special=n == 3) for n, text in enumerate(HOSTILE)
    )
    shown = ComparisonPreview(
        id=HOSTILE[0], where=str(data), grades=(1.0, 0.0), prefix=tokens, branches=(tokens, tokens)
    )
    write_preview(folder / "preview.html", [(shown, HOSTILE[:2])], data=str(data), model="x" * 90)
    return [
        write_report(folder),
        hostile / "report.html",
        folder / "audit" / "audit.html",
        folder / "preview.html",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_every_page_fits_and_is_accessible(pages: list[Path], browser: Browser, width: int) -> None:
    """axe-core's rules (WCAG 2.1 A and AA among them), and nothing cut, too wide or too long."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe").Axe()
    # Of the test's own script alone: axe is put into the page.
    page = browser.new_page(viewport={"width": width, "height": 800}, bypass_csp=True)
    for path in pages:
        page.emulate_media(color_scheme="light")
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollHeight") < 9_000
        page.evaluate(OPEN_ALL)
        page.wait_for_timeout(50)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(TOO_WIDE) == []
        assert page.evaluate(CUT_TEXTS) == []
        assert page.evaluate(BROKEN_WORDS) == []
        assert page.evaluate(SMALLEST_LETTERS) > 9
        light = axe.run(page)
        assert light.violations_count == 0, light.generate_report()
        # Of a dark page only the colours are others.
        page.emulate_media(color_scheme="dark")
        dark = axe.run(page, options={"runOnly": ["color-contrast"]})
        assert dark.violations_count == 0, dark.generate_report()
    page.close()
