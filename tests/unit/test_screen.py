"""What an evaluation looks like on a terminal."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from plaudit.cli.screen import ends, show_evaluation, signed

GOLDEN = Path(__file__).parents[1] / "goldens" / "run" / "metrics.json"


def shown(block: dict[str, Any], width: int) -> str:
    screen = io.StringIO()
    show_evaluation(Console(file=screen, width=width), block)
    return screen.getvalue()


def intervals(block: dict[str, Any]) -> Iterator[str]:
    """Every interval that a table of the screen holds."""
    for facts in block["baselines"].values():
        yield ends(facts["accuracy_ci95"])
        yield ends(facts["difference_ci95"], signed)
    for row in block["bias"]["features"]:
        if row["pairs"]:
            yield ends(row["gap_ci95"], signed)
    for row in (block["behaviour"] or {"operators": []})["operators"]:
        yield ends(row["fell_ci95"])


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("role", ["eval", "test"])
def test_no_number_is_cut_off(role: str, width: int) -> None:
    """A table wider than the screen would lose its last columns without a word."""
    block = json.loads(GOLDEN.read_text(encoding="utf-8"))[role]
    if block is None:
        pytest.skip("the golden run has no such part")
    text = shown(block, width)
    assert max(len(line.rstrip()) for line in text.splitlines()[1:]) <= width
    for interval in intervals(block):
        assert interval in text
