"""Stages meet in the shared records, not in each other; the light parts load nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "plaudit"
STAGES = frozenset(
    {"data", "tokens", "model", "loss", "train", "evaluate", "report", "serve", "share", "plan"}
)

# Composition roots join stages. A folder stands for all its files.
ROOTS = (
    "train",
    "evaluate_model.py",
    "evaluation/analysis/token_rewards.py",
    "evaluation/analysis/probing.py",
    "evaluation/additions.py",
    "evaluation/candidates.py",
    "calibrate_model.py",
    "evaluation/suites/run.py",
    "serve",
    "share",
    "cli",
)

# Edges outside the roots, each with its reason. Nothing else may join this list unnoticed.
ALLOWED: dict[tuple[str, str], str] = {
    (
        "client.py",
        "data",
    ): "messages are checked before they are sent, as by a local model",
}

LIGHT = (
    "plaudit",
    "plaudit.cli",
    "plaudit.cli.data",
    "plaudit.cli.main",
    "plaudit.client",
    "plaudit.data",
    "plaudit.data.audit.run",
    "plaudit.data.formats.convert",
    "plaudit.data.load",
    "plaudit.errors",
    "plaudit.storage.atomic",
    "plaudit.planning.estimate",
    "plaudit.planning.architecture",
    "plaudit.recipe.schema",
    "plaudit.report",
    "plaudit.report.audit",
    "plaudit.report.card",
    "plaudit.report.preview",
    "plaudit.interop.hub",
    "plaudit.types",
)
HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "sklearn", "matplotlib")


def imports(path: Path) -> Iterator[str]:
    """Modules of plaudit that a file imports anywhere, those only for type checking left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def stage_of(module: str) -> str | None:
    parts = module.split(".")
    if len(parts) > 1 and parts[0] == "plaudit" and parts[1] in STAGES:
        return parts[1]
    return None


def is_root(relative: Path) -> bool:
    return relative.as_posix() in ROOTS or relative.parts[0] in ROOTS


def edges() -> set[tuple[str, str]]:
    """``(file, stage it imports)`` for every import of another stage outside the roots."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        relative = path.relative_to(PACKAGE)
        if is_root(relative):
            continue
        own = relative.parts[0] if relative.parts[0] in STAGES else None
        stages = {stage_of(module) for module in imports(path)} - {None, own}
        found |= {(relative.as_posix(), stage) for stage in stages if stage}
    return found


def test_stages_meet_only_in_composition_roots() -> None:
    assert edges() == set(ALLOWED)


def test_stages_import_no_root_of_another() -> None:
    for path in PACKAGE.rglob("*.py"):
        relative = path.relative_to(PACKAGE)
        if relative.parts[0] != "cli":
            assert not [m for m in imports(path) if m.startswith("plaudit.cli.")] or (
                relative.as_posix() == "__main__.py"
            ), f"{relative} imports the command line"


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    program = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_nothing_but_the_command_line_imports_training() -> None:
    importers = {
        path.relative_to(PACKAGE).parts[0]
        for path in PACKAGE.rglob("*.py")
        if any(stage_of(module) == "train" for module in imports(path))
    }
    assert importers <= {"train", "cli"}
