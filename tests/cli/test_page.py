"""The page in a real browser, in front of a real server: its numbers, keys, errors and looks."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")

from plaudit.reward_model import RewardModel  # noqa: E402
from plaudit.serving.app import PAGE_PATHS  # noqa: E402
from plaudit.serving.protocols.table import PROTOCOLS  # noqa: E402
from tests.models import FIVE_HEADS, THREE, saved_with_outputs  # noqa: E402
from tests.servers import Running, running  # noqa: E402

expect = playwright.expect
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here; name one with CHROMIUM=/path/to/it"
)
pytestmark = pytest.mark.heavy

PROMPT = "what is the answer"
RESPONSES = ["because we counted twice right", "no that is not wrong", "forty two"]
MARKUP = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"


@pytest.fixture(scope="module")
def server(finished_run: Path) -> Iterator[Running]:
    with running(finished_run) as server:
        yield server


@pytest.fixture(scope="module")
def guarded(finished_run: Path) -> Iterator[Running]:
    with running(finished_run, token="open sesame") as server:
        yield server


@pytest.fixture
def model(server: Running) -> RewardModel:
    return server.model.model


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        # A container's root user has no sandbox.
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watched:
    """A page, and what it complained of or asked of other places."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        # Colours are judged as they end, not on their way there.
        self.context = browser.new_context(reduced_motion="reduce", **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._heard)
        self.page.on("request", lambda request: self._asked(request.url, url))
        self.page.goto(url)

    def _heard(self, message: Any) -> None:
        # The browser itself logs every answer that is not 2xx; what is said of it is tested.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    def _asked(self, address: str, url: str) -> None:
        if not address.startswith((url, "data:", "blob:")):
            self.complaints.append(f"asked for {address}")


@pytest.fixture
def watched(browser: Any, server: Running) -> Iterator[Watched]:
    found = Watched(browser, server.url)
    expect(found.page.locator("#models")).to_have_value(server.model.name)
    yield found
    found.context.close()
    assert found.complaints == []


@pytest.fixture
def page(watched: Watched) -> Any:
    return watched.page


def fill(page: Any, responses: list[str]) -> None:
    for _ in range(len(responses) - 2):
        page.get_by_role("button", name="Add a response").click()
    for index, response in enumerate(responses):
        page.get_by_label(f"Response {'ABCDEFG'[index]}", exact=True).fill(response)


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def rewards_shown(page: Any) -> list[float]:
    cells = page.locator("table.scores tbody td:nth-child(3) .n")
    expect(cells.first).to_be_visible()
    return [number(text) for text in cells.all_inner_texts()]


def three_decimals(rewards: float | list[float]) -> Any:
    return pytest.approx(rewards, abs=6e-4)


# ---- compare -------------------------------------------------------------------------------------


@needs_browser
def test_the_page_shows_what_the_model_says(page: Any, model: RewardModel) -> None:
    page.get_by_label("Prompt text").fill(PROMPT)
    fill(page, RESPONSES)
    page.get_by_role("button", name="Score", exact=True).click()
    expected = model.score(PROMPT, RESPONSES)
    assert rewards_shown(page) == three_decimals(expected)
    best = "ABC"[expected.index(max(expected))]
    expect(page.locator("#summary")).to_contain_text(f"{best} has the highest reward")
    expect(page.locator("tr.best th")).to_have_text(best)
    order = [sorted(expected, reverse=True).index(reward) + 1 for reward in expected]
    assert page.locator("table.scores .rank").all_inner_texts() == [str(rank) for rank in order]
    chances = page.locator("table.scores tbody td:nth-child(4) .n").all_inner_texts()
    assert sum(float(text.rstrip("%")) for text in chances) == pytest.approx(100, abs=0.2)


@needs_browser
def test_outputs_and_spread_of_a_response_are_shown(
    browser: Any, tiny_base: Path, tmp_path: Path
) -> None:
    named = replace(THREE, names=("helpful", MARKUP, "short"))
    attributes = saved_with_outputs(tmp_path / "attributes", tiny_base, lora=True, outputs=named)
    ensemble = saved_with_outputs(tmp_path / "ensemble", tiny_base, lora=True, outputs=FIVE_HEADS)
    with running(attributes, ensemble, lower_bound_k=2.0) as server:
        watched = Watched(browser, server.url)
        page = watched.page
        page.get_by_label("Prompt text").fill(PROMPT)
        fill(page, RESPONSES)
        page.get_by_role("button", name="Score", exact=True).click()
        heads = page.locator("table.scores thead th")
        expect(heads.nth(4)).to_have_text("helpful")
        shown = ["helpful", MARKUP, "short", "Tokens"]
        assert heads.all_text_contents() == [*heads.all_text_contents()[:4], *shown]
        details = server.engine.models[0].model.score(PROMPT, RESPONSES, outputs=True)
        for place, name in enumerate(named.names, start=5):
            cells = page.locator(f"table.scores tbody td:nth-child({place})")
            expected = [(one.outputs or {})[name] for one in details]
            assert [number(text) for text in cells.all_inner_texts()] == three_decimals(expected)
        page.locator("#models").select_option("ensemble")
        page.get_by_role("button", name="Score", exact=True).click()
        expect(heads.nth(4)).to_have_text("Spread")
        expect(heads.nth(5)).to_have_text("Lower bound")
        assert heads.count() == 7
        bounds = server.engine.models[1].model.score(PROMPT, RESPONSES, uncertainty=True)
        for place, field in ((5, "spread"), (6, "lower_bound")):
            cells = page.locator(f"table.scores tbody td:nth-child({place})")
            expected = [getattr(one, field) for one in bounds]
            assert [number(text) for text in cells.all_inner_texts()] == three_decimals(expected)
        assert page.title() != "run"
        page.get_by_role("link", name="Model").click()
        expect(page.locator("#metadata")).to_contain_text("head 4")
        watched.context.close()
    assert watched.complaints == []


@needs_browser
def test_per_token_rewards_are_read_with_the_keyboard(page: Any, model: RewardModel) -> None:
    page.get_by_label("Prompt text").fill(PROMPT)
    fill(page, RESPONSES[:2])
    page.keyboard.press("Control+Enter")
    steps = model.token_rewards(PROMPT, RESPONSES[1])
    slider = page.get_by_role("slider", name="Response B, token")
    strip = page.locator(".strip").nth(1)
    expect(strip.locator(".token")).to_have_count(len(steps))
    assert "".join(strip.locator(".token").all_text_contents()) == "".join(
        step.text for step in steps
    )
    # The whole response stands at its reward, and each arrow one token before.
    slider.focus()
    for at in (len(steps) - 1, len(steps) - 2, len(steps) - 3):
        said = slider.get_attribute("aria-valuetext")
        assert said.startswith(f"token {at + 1} of {len(steps)}")
        shown = number(said.partition(" reward ")[2].partition(",")[0])
        assert shown == three_decimals(steps[at].reward)
        assert strip.locator(".here").text_content() == steps[at].text
        page.keyboard.press("ArrowLeft")
    strip.locator(".token").first.hover()
    expect(slider).to_have_attribute("aria-valuetext", _starts(f"token 1 of {len(steps)}"))
    assert page.locator(".chart polyline").count() == 2


def _starts(text: str) -> Any:
    import re

    return re.compile(f"^{re.escape(text)}")


@needs_browser
def test_a_conversation_is_scored_as_messages(page: Any, model: RewardModel) -> None:
    page.get_by_label("conversation").check()
    page.get_by_label("Turn 1", exact=True).fill("what is it")
    for number, text in ((2, "the fox"), (3, "are we right")):
        page.get_by_role("button", name="Add a turn").click()
        page.get_by_label(f"Turn {number}", exact=True).fill(text)
    fill(page, RESPONSES[:2])
    page.keyboard.press("Control+Enter")
    turns = [("user", "what is it"), ("assistant", "the fox"), ("user", "are we right")]
    prompt = [{"role": role, "content": text} for role, text in turns]
    assert rewards_shown(page) == three_decimals(model.score(prompt, RESPONSES[:2]))


@needs_browser
def test_all_of_it_by_keyboard(page: Any, model: RewardModel) -> None:
    """Tab reaches every field in order, and the focus can be seen."""

    def tab_to(name: str) -> None:
        for _ in range(20):
            page.keyboard.press("Tab")
            focused = page.locator(":focus")
            labels = focused.evaluate(
                "e => e.ariaLabel"
                " || [...(e.labels ?? [])].map(label => label.textContent).join() || e.textContent"
            )
            if labels.strip() == name:
                assert focused.evaluate("e => getComputedStyle(e).outlineStyle") != "none"
                return
        raise AssertionError(f"Tab does not reach {name}")

    tab_to("Prompt text")
    page.keyboard.type(PROMPT)
    tab_to("Response A")
    page.keyboard.type(RESPONSES[0])
    tab_to("Response B")
    page.keyboard.type(RESPONSES[1])
    tab_to("Score")
    page.keyboard.press("Enter")
    assert rewards_shown(page) == three_decimals(model.score(PROMPT, RESPONSES[:2]))
    tab_to("Response A, token")


@needs_browser
def test_markup_in_texts_is_text(page: Any) -> None:
    page.get_by_label("Prompt text").fill(MARKUP)
    fill(page, [MARKUP, f"'{MARKUP}"])
    page.keyboard.press("Control+Enter")
    expect(page.locator(".token-rewards")).to_be_visible()
    page.get_by_role("link", name="File").click()
    rows = [
        {"prompt": MARKUP, "responses": [MARKUP]},
        {"prompt": "a", "responses": [{"b": MARKUP}]},
    ]
    page.locator("#rows").fill("\n".join(json.dumps(row) for row in rows) + f"\n{MARKUP}")
    page.get_by_role("button", name="Score the rows").click()
    expect(page.locator("#table td").nth(1)).to_have_text(MARKUP)
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 1
    assert page.title() == "plaudit: try a reward model"


@needs_browser
def test_rejections_are_said_in_words(page: Any, server: Running) -> None:
    page.get_by_label("Prompt text").fill("fox " * 2000)
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("alert")).to_contain_text("tokens")
    page.get_by_label("Prompt text").fill(PROMPT)
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("alert")).to_be_hidden()
    page.route("**/v1/rewards", lambda route: route.abort())
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("alert")).to_contain_text("The server is unreachable")


@needs_browser
def test_a_busy_server_is_asked_again(page: Any, model: RewardModel) -> None:
    answers = iter([429, 503])

    def busy(route: Any) -> None:
        status = next(answers, None)
        if status is None:
            route.continue_()
        else:
            route.fulfill(status=status, headers={"Retry-After": "0.01"}, body="no JSON")

    page.route("**/v1/rewards", busy)
    page.get_by_label("Prompt text").fill(PROMPT)
    fill(page, RESPONSES[:2])
    page.keyboard.press("Control+Enter")
    assert rewards_shown(page) == three_decimals(model.score(PROMPT, RESPONSES[:2]))


# ---- file ----------------------------------------------------------------------------------------


@needs_browser
def test_a_file_is_scored_sorted_and_given_back(
    page: Any, model: RewardModel, tmp_path: Path
) -> None:
    chat = [{"role": "user", "content": PROMPT}]
    answers = [[{"role": "assistant", "content": text}] for text in RESPONSES]
    rows: list[Any] = [
        {"prompt": PROMPT, "responses": RESPONSES, "kept": 7},
        {"prompt": chat, "chosen": answers[1], "rejected": answers[0]},
        {"chosen": [*chat, *answers[0]], "rejected": [*chat, *answers[1]]},
        {"prompt": "fox " * 2000, "responses": ["a"]},
        {"prompt": PROMPT},
    ]
    file = tmp_path / "rows.jsonl"
    lines = [json.dumps(row) for row in rows]
    file.write_text("\n\n".join([*lines, "no JSON"]) + "\n", encoding="utf-8")
    page.get_by_role("link", name="File").click()
    page.get_by_label("choose a file").set_input_files(file)
    expect(page.locator("#rows")).not_to_be_empty()
    page.get_by_role("button", name="Score the rows").click()
    summary = page.locator("#file-summary")
    expect(summary).to_contain_text("3 rows of 6 scored, 3 rows not")
    expect(summary).to_contain_text("Chosen ranks higher in 1 of 2 pairs")

    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    content = Path(download.value.path()).read_text(encoding="utf-8")
    scored = [json.loads(line) for line in content.splitlines()]
    assert [{k: v for k, v in row.items() if not k.startswith("rewards")} for row in scored] == [
        *rows,
        {"line": "no JSON"},
    ]
    expected = model.score(PROMPT, RESPONSES)
    assert scored[0]["rewards"] == pytest.approx(expected, abs=1e-5)
    assert scored[1]["rewards"] == pytest.approx([expected[1], expected[0]], abs=1e-5)
    assert scored[2]["rewards"] == pytest.approx([expected[0], expected[1]], abs=1e-5)
    assert "tokens" in scored[3]["rewards_reason"]
    assert "Expected prompt with responses" in scored[4]["rewards_reason"]
    assert "Invalid JSON" in scored[5]["rewards_reason"]
    assert [row["rewards"] for row in scored[3:]] == [None] * 3

    margins = {1: expected[0] - max(expected[1:]), 3: expected[1] - expected[0]}
    margins[5] = -margins[3]
    head = page.get_by_role("button", name="Margin")
    for reverse in (False, True):
        head.click()
        kept = [int(text) for text in page.locator("#table td:first-child").all_inner_texts()]
        assert kept == [*sorted(margins, key=lambda n: margins[n], reverse=reverse), 7, 9, 11]
        assert head.evaluate("e => e === document.activeElement")


@needs_browser
def test_a_file_is_stopped_halfway(page: Any) -> None:
    page.route("**/v1/rewards", lambda route: None)
    page.get_by_role("link", name="File").click()
    page.locator("#rows").fill('{"prompt": "a", "responses": ["b"]}\n' * 9)
    page.get_by_role("button", name="Score the rows").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#file-summary")).to_contain_text("0 rows of 9 scored, 9 rows not")
    expect(page.locator("#progress")).to_be_hidden()
    page.unroute("**/v1/rewards")
    page.get_by_role("button", name="Score the rows").click()
    expect(page.locator("#file-summary")).to_contain_text("9 rows of 9 scored.")


# ---- model and token -----------------------------------------------------------------------------


@needs_browser
def test_the_models_metadata_and_report(watched: Watched, server: Running) -> None:
    page = watched.page
    page.get_by_role("link", name="Model", exact=True).click()
    expect(page.locator("#metadata")).to_contain_text("maximum length in tokens")
    with watched.context.expect_page() as opened:
        page.get_by_role("link", name="Report").click()
    report = opened.value
    report.wait_for_load_state()
    expect(report.locator("h1")).to_have_text("lora")
    assert report.locator("h1").evaluate("e => getComputedStyle(e).marginTop") == "0px"


@needs_browser
def test_a_guarded_server_is_asked_with_the_token(browser: Any, guarded: Running) -> None:
    watched = Watched(browser, guarded.url)
    page = watched.page
    field = page.get_by_label("This server requires a token")
    expect(field).to_be_focused()
    field.fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("token")
    field.fill("open sesame")
    page.keyboard.press("Enter")
    expect(field).to_be_hidden()
    expect(page.get_by_role("alert")).to_be_hidden()
    page.locator("#example").click()
    page.keyboard.press("Control+Enter")
    assert len(rewards_shown(page)) == 2
    page.get_by_role("link", name="Model", exact=True).click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download report").click()
    content = Path(download.value.path()).read_text(encoding="utf-8")
    assert content == (Path(guarded.model.source) / "report.html").read_text(encoding="utf-8")
    assert page.evaluate("localStorage.length + document.cookie.length") == 0
    watched.context.close()
    assert watched.complaints == []


# ---- the API's page ------------------------------------------------------------------------------


@needs_browser
def test_the_api_is_described(browser: Any, server: Running) -> None:
    watched = Watched(browser, server.url)
    page = watched.page
    page.get_by_role("link", name="API").click()
    expect(page.get_by_role("heading", name="Rewards of K responses to one prompt")).to_be_visible()
    shown = page.locator("main").inner_text()
    for protocol in PROTOCOLS.values():
        assert protocol.summary in shown
        for path, method in product(protocol.paths, protocol.methods):
            assert f"{method} {path}" in shown
    page.get_by_role("link", name="RewardsRequest").first.click()
    assert page.url.endswith("/docs#RewardsRequest")
    section = page.locator("#RewardsRequest")
    assert "responses *" in section.inner_text()
    assert "list of (text or list of ChatMessage)" in section.inner_text()
    page.get_by_role("link", name="Try the model").click()
    expect(page.locator("#models")).to_have_value(server.model.name)
    watched.context.close()
    assert watched.complaints == []


@needs_browser
def test_the_api_of_a_guarded_server_is_shown_with_the_token(
    browser: Any, guarded: Running
) -> None:
    watched = Watched(browser, f"{guarded.url}/docs")
    field = watched.page.get_by_label("This server requires a token")
    expect(field).to_be_focused()
    assert watched.page.locator("#operations").inner_text() == ""
    field.fill("open sesame")
    watched.page.keyboard.press("Enter")
    expect(watched.page.get_by_role("heading", name="Errors")).to_be_visible()
    expect(field).to_be_hidden()
    watched.context.close()


# ---- looks ---------------------------------------------------------------------------------------


@needs_browser
@pytest.mark.parametrize(
    ("scheme", "width"), [("light", 360), ("dark", 360), ("light", 1280), ("dark", 1280)]
)
def test_every_part_fits_and_is_accessible(
    browser: Any, server: Running, scheme: str, width: int
) -> None:
    """axe-core's rules (WCAG 2.1 A and AA among them), and nothing wider than the window."""
    watched = Watched(
        browser,
        server.url,
        viewport={"width": width, "height": 800},
        color_scheme=scheme,
        # Of the test's own script alone: axe is put into the page.
        bypass_csp=True,
    )
    page = watched.page
    expect(page.locator("#models")).to_have_value(server.model.name)
    page.locator("#example").click()
    page.get_by_role("button", name="Add a response").click()
    page.get_by_label("Response C", exact=True).fill("verylongword" * 8)
    page.keyboard.press("Control+Enter")
    expect(page.locator(".token-rewards")).to_be_visible()
    check_looks(page, width)
    page.get_by_role("link", name="File").click()
    page.locator("#rows-example").click()
    page.get_by_role("button", name="Score the rows").click()
    expect(page.locator("#table table")).to_be_visible()
    check_looks(page, width)
    page.get_by_role("link", name="Model", exact=True).click()
    expect(page.locator("#metadata dl").first).to_be_visible()
    check_looks(page, width)
    page.get_by_role("link", name="API").click()
    expect(page.get_by_role("heading", name="Schemas")).to_be_visible()
    check_looks(page, width)
    watched.context.close()
    assert watched.complaints == []


def check_looks(page: Any, width: int) -> None:
    expect(page.locator("[aria-busy]")).to_have_count(0)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # With the fonts of this machine, and with letters so wide that every table scrolls.
    for spacing in ("0", "1ch"):
        style = f".scroll :is(th, td) {{ letter-spacing: {spacing}; white-space: nowrap }}"
        added = page.add_style_tag(content=style)
        results = axe.Axe().run(page)
        assert results.violations_count == 0, results.generate_report()
        added.evaluate("element => element.remove()")


# ---- what is sent, without a browser -------------------------------------------------------------


def test_pages_forbid_what_they_do_not_need(server: Running) -> None:
    for path in sorted(PAGE_PATHS):
        answer = server.get(path)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    name = server.model.name
    report, card = (server.get(f"/models/{name}/{paper}") for paper in ("report", "card"))
    assert report.headers["content-type"].startswith("text/html")
    assert card.headers["content-type"].startswith("text/plain")
    for paper in (report, card):
        assert paper.status_code == 200
        assert "sandbox" in paper.headers["content-security-policy"]
        assert "allow-same-origin" not in paper.headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        "/static/missing.js",
        "/static/..%2fpage.py",
        "/static/%2e%2e/page.py",
        "/models/another/report",
        "/models/..%2f..%2f/report",
        "/models/lora/plaudit.json",
    ],
)
def test_other_files_are_not_sent(server: Running, path: str) -> None:
    assert server.get(path).status_code == 404


def test_a_guarded_servers_page_says_nothing_of_its_model(guarded: Running) -> None:
    for path in sorted(PAGE_PATHS):
        assert guarded.get(path).status_code == 200
        assert guarded.model.name not in guarded.get(path).text
    for path in ("/v1/models", "/models/lora/report", "/models/lora/card"):
        assert guarded.get(path).status_code == 401
        assert guarded.get(path, headers={"Authorization": "Bearer open sesame"}).is_success
