"""The reference pages say what the code does."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = runpy.run_path(str(ROOT / "scripts" / "generate_reference.py"))["PAGES"]


@pytest.mark.parametrize("page", PAGES)
def test_reference_pages_are_up_to_date(page: str) -> None:
    written = (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8")
    assert written == PAGES[page](), "run: make docs"
