"""Take screenshots of pages that plaudit writes, at three widths, in light and dark.

    python scripts/screenshots.py RUN_FOLDER… --out DIR [--widths 360,768,1280]
                                  [--schemes light,dark] [--open] [--height PIXELS]

Takes every HTML page of a folder (report, audit), or the named HTML files (a preview). Each page is
written to ``DIR/<folder>-<page>/<width>-<scheme>.png``, in parts where it is long, and each of its
figures to a file of its own. Needs playwright (the ``test`` extra) and a Chromium.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, FloatRect, Page

PART = 1600
"""Pixels of a page in one file: Chromium cannot draw more than 16,384 at once, and nobody can read
more than a few screens in one picture."""


def main() -> None:
    """Open every page at every width and in every scheme."""
    from playwright.sync_api import sync_playwright

    arguments = parse_arguments()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=arguments.chromium, args=["--no-sandbox"]
        )
        for path in pages_of(arguments.paths):
            folder = arguments.out / f"{path.resolve().parent.name}-{path.stem}"
            for width in arguments.widths.split(","):
                for scheme in arguments.schemes.split(","):
                    page = open_page(browser, path, int(width), scheme, opened=arguments.open)
                    total = page.evaluate("document.documentElement.scrollHeight")
                    height = min(total, arguments.height or total)
                    take(page, folder, f"{width}-{scheme}", height)
                    page.context.close()
                    print(f"{folder}/{width}-{scheme}: {total:,} pixels long")
        browser.close()


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("paths", type=Path, nargs="+", help="folders with pages, or HTML files")
    parser.add_argument("--out", type=Path, required=True, help="folder for the screenshots")
    parser.add_argument("--widths", default="360,768,1280", help="pixels, separated by commas")
    parser.add_argument("--schemes", default="light,dark", help="colour schemes")
    parser.add_argument("--open", action="store_true", help="open every collapsed section")
    parser.add_argument("--height", type=int, help="only this many pixels from the top")
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="the browser's program")
    return parser.parse_args()


def pages_of(paths: Sequence[Path]) -> Iterator[Path]:
    """HTML files: those named, and those directly inside the folders named."""
    for path in paths:
        found = sorted(path.glob("*.html")) if path.is_dir() else [path]
        if not found or not found[0].is_file():
            raise SystemExit(f"{path}: no HTML page here; name a run folder or an HTML file.")
        yield from found


def open_page(browser: Browser, path: Path, width: int, scheme: str, *, opened: bool) -> Page:
    """The page in a window of this width."""
    context = browser.new_context(
        viewport={"width": width, "height": 800},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    page = context.new_page()
    page.goto(path.resolve().as_uri())
    if opened:
        page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    return page


def take(page: Page, folder: Path, name: str, height: int) -> None:
    """The page in parts, then each figure that is visible."""
    width = page.evaluate("document.documentElement.clientWidth")
    tops = range(0, height, PART)
    for number, top in enumerate(tops, start=1):
        part: FloatRect = {"x": 0, "y": top, "width": width, "height": min(PART, height - top)}
        suffix = f"-part{number:02d}" if len(tops) > 1 else ""
        page.screenshot(path=folder / f"{name}{suffix}.png", clip=part, full_page=True)
    for number, figure in enumerate(page.locator("figure").all(), start=1):
        if figure.is_visible():
            figure.screenshot(path=folder / f"{name}-figure{number:02d}.png")


if __name__ == "__main__":
    main()
