"""The page's JavaScript: its types where a compiler is at hand, and what its files may hold."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "plaudit" / "serving" / "static"
TSC = shutil.which("tsc")


@pytest.mark.skipif(TSC is None, reason="no tsc here; `make check-page` fetches one")
def test_types() -> None:
    done = subprocess.run(
        [str(TSC), "--project", ROOT / "jsconfig.json"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_pages_are_small() -> None:
    """A fifth of the scripts is comments and types."""
    sizes = {path.name: path.stat().st_size for path in STATIC.iterdir()}
    of_docs = sizes.pop("docs.js"), sizes.pop("docs.html")
    assert sum(of_docs) < 10_000
    assert sum(size for name, size in sizes.items() if name.endswith(".js")) < 45_000
    assert sum(sizes.values()) < 60_000


def test_every_file_is_in_the_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["plaudit"]
    for path in STATIC.iterdir():
        assert any(path.match(pattern) for pattern in patterns), path


def test_texts_never_become_markup() -> None:
    """No way from text to markup or code, and nothing from elsewhere."""
    for path in STATIC.iterdir():
        text = path.read_text(encoding="utf-8")
        unsafe = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function"
        assert not re.search(unsafe, text), path
        # The name of SVG's elements is an address that nobody fetches.
        elsewhere = set(re.findall(r"https?://[^\"'\s]+", text)) - {"http://www.w3.org/2000/svg"}
        assert elsewhere == set(), path
        assert not re.search(r"<[^>]*\s(on\w+|style)=", text) or path.suffix == ".js", path
