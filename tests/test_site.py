"""The documentation site builds without a warning, and every link of it leads somewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

pytest.importorskip("mkdocs")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
ASSETS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
"""Tags whose attribute a browser loads without a click."""


def build(root: Path, target: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(target)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )


class References(HTMLParser):
    """What a page loads, what it links to, and its anchors."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.assets: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        self.anchors.add(named.get("id", ""))
        if tag in ASSETS and ASSETS[tag] in named:
            self.assets.append(named[ASSETS[tag]])
        if tag == "a" and "href" in named:
            self.links.append(named["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    done = build(ROOT, target)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, References]:
    return {page: References(page) for page in site.rglob("*.html") if page.name != "404.html"}


def test_every_page_of_docs_is_in_the_navigation(pages: dict[Path, References], site: Path) -> None:
    home = pages[site / "index.html"]
    reached = {(site / urldefrag(link)[0]).resolve() / "index.html" for link in home.links}
    for page in (ROOT / "docs").rglob("*.md"):
        built = page.relative_to(ROOT / "docs").with_suffix("")
        folder = built.parent if built.name == "README" else built
        assert (site / folder / "index.html").resolve() in reached, page


def test_no_page_loads_anything_from_another_host(
    pages: dict[Path, References], site: Path
) -> None:
    outside = {
        asset for page in pages.values() for asset in page.assets if "//" in asset.partition("?")[0]
    }
    assert outside == set()
    styles = [file for file in site.rglob("*.css") if "http" in file.read_text(encoding="utf-8")]
    assert [file.name for file in styles if "url(http" in file.read_text(encoding="utf-8")] == []


def test_every_link_leads_to_a_file_and_an_anchor(pages: dict[Path, References]) -> None:
    dead = []
    for page, found in pages.items():
        for link in (*found.links, *found.assets):
            if link.startswith(("http://", "https://", "data:", "mailto:")):
                continue
            path, anchor = urldefrag(link)
            target = (page.parent / unquote(path)).resolve() if path else page
            target = target / "index.html" if target.is_dir() else target
            known = pages[target].anchors if target in pages else {""}
            if not target.is_file() or (anchor and target in pages and anchor not in known):
                dead.append((page.parent.name, link))
    assert dead == []


def test_search_finds_the_pages(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    texts = {entry["location"]: entry["text"] for entry in index["docs"]}
    assert {"start-here/", "how-to/calibrate-a-model/", "reference/recipe/"} <= texts.keys()
    assert any("learning_rate" in text for place, text in texts.items() if "recipe" in place)
    assert any("reference/python/" in place for place in texts)
    assert not any(place.startswith("source/") for place in texts)


def test_a_mistake_fails_the_build(tmp_path: Path) -> None:
    for name in ("docs", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for path in ROOT.iterdir():
        if path.name not in ("docs", "scripts", "site") and not path.name.startswith("."):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "docs" / "lost.md").write_text("# Lost\n")
    with (tmp_path / "docs" / "results.md").open("a") as page:
        page.write("\n[a](start-here.md#nowhere) [b](nowhere.md)\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    for mistake in ("lost.md", "#nowhere", "'nowhere.md'"):
        assert mistake in done.stderr
    with (tmp_path / "docs" / "results.md").open("a") as page:
        page.write("\n[c](../plaudit/nowhere.py)\n")
    assert "plaudit/nowhere.py, which does not exist" in build(tmp_path, tmp_path / "site").stderr
