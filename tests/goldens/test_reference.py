"""The reference pages say what the code does."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from plaudit.serving.protocols.table import PROTOCOLS

ROOT = Path(__file__).parents[2]
PAGES = runpy.run_path(str(ROOT / "scripts" / "generate_reference.py"))["PAGES"]


@pytest.mark.parametrize("page", PAGES)
def test_reference_pages_are_up_to_date(page: str) -> None:
    written = (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8")
    assert written == PAGES[page](), "run: make docs"


def test_recorded_responses_have_the_shapes_of_their_protocols() -> None:
    recorded = json.loads((ROOT / "scripts" / "http_examples.json").read_text(encoding="utf-8"))
    for name, protocol in PROTOCOLS.items():
        TypeAdapter(protocol.response).validate_python(recorded[name])
