"""The phrases of docs/wording.md stay out of everything that people read."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from plaudit.cli.main import RENAMED

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "plaudit"
WORDING = ROOT / "docs/wording.md"

# The change log quotes old names, and recorded results keep the words of their day.
PAGES = [
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *PACKAGE.rglob("*.md"))
    if path not in (WORDING, ROOT / "CHANGELOG.md")
]
TEMPLATES = [
    path for ending in ("jinja", "html", "js", "yaml") for path in PACKAGE.rglob(f"*.{ending}")
]
TEMPLATES.append(PACKAGE / "recipe/hf_keys.json")
SOURCES = sorted(PACKAGE.rglob("*.py"))


def banned() -> dict[str, re.Pattern[str]]:
    """The phrases of the first column; ``*`` stands for any ending of a word.

    "There is no file" is plain English; "it is no file" is not.
    """
    rows = re.findall(r"^\| (.+?) \| .+ \|$", WORDING.read_text(encoding="utf-8"), re.MULTILINE)
    phrases = [phrase for row in rows[2:] for phrase in row.split(", ")]
    return {
        phrase: re.compile(
            r"(?<!there )\b"
            + r"\s+".join(map(re.escape, phrase.split())).replace(r"\*", r"\w*")
            + r"\b",
            re.IGNORECASE,
        )
        for phrase in phrases
    }


BANNED = banned()


def violations(text: str) -> list[str]:
    """Each banned phrase of a text with the line it is on."""
    return [
        f"line {text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}"
        for pattern in BANNED.values()
        for match in pattern.finditer(text)
    ]


def shown_strings(source: Path) -> Iterator[tuple[int, str]]:
    """String literals that may be shown, except old names of commands.

    Docstrings are shown only where they become a ``--help`` page.
    """
    tree = ast.parse(source.read_text(encoding="utf-8"))
    # Docstrings, of attributes too.
    unshown = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and not source.is_relative_to(PACKAGE / "cli")
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or id(node) in unshown:
            continue
        if isinstance(node.value, str) and node.value not in RENAMED:
            yield node.lineno, node.value


def test_the_list_is_read() -> None:
    assert len(BANNED) > 50
    assert violations("It stands\nout, and\nArtefacts too.") == [
        "line 3: 'Artefacts'",
        "line 1: 'stands\\nout'",
    ]
    assert violations("outstanding; a model folder; there is no file") == []


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in (*PAGES, *TEMPLATES)]
)
def test_pages_and_templates_use_the_words_of_the_field(path: Path) -> None:
    assert violations(path.read_text(encoding="utf-8")) == []


def test_messages_use_the_words_of_the_field() -> None:
    found = [
        f"{source.relative_to(ROOT)}:{line}: {one}"
        for source in SOURCES
        for line, text in shown_strings(source)
        for one in violations(text)
    ]
    assert found == []
