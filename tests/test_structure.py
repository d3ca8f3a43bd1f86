"""One order of layers, few parameters, no other tool in the core; light parts stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "plaudit"

# A layer imports itself and the layers below it, at the top of a file or inside a function. The
# longest pattern that fits a module decides; a pattern stands for all that lies under it.
LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "__main__",
        "cli",
        "serving",
        "interop.*.protocol",
        "interop.export",
        "interop.hub",
        "interop.importing",
        "interop.merge",
        "interop.parity",
        "interop.trl.reward_function",
        "calibrate_model",
        "compare_models",
    ),
    ("training",),
    ("audit_data", "evaluate_model"),
    ("report",),
    ("evaluation",),
    ("score_file", "client"),
    ("reward_model",),
    ("interop",),
    ("planning",),
    ("model",),
    ("tokens",),
    ("losses",),
    ("data",),
    ("recipe",),
    ("storage", "embedded"),
    ("registry",),
    # The package itself names its functions and imports none of them before they are called.
    ("types", "errors", ""),
)

LIGHT = (
    "plaudit",
    "plaudit.cli",
    "plaudit.cli.data",
    "plaudit.cli.main",
    "plaudit.client",
    "plaudit.data",
    "plaudit.data.audit.run",
    "plaudit.data.formats.writers",
    "plaudit.data.load",
    "plaudit.errors",
    "plaudit.interop.hub",
    "plaudit.planning.estimate",
    "plaudit.recipe.schema",
    "plaudit.registry",
    "plaudit.report",
    "plaudit.report.audit",
    "plaudit.report.card",
    "plaudit.report.preview",
    "plaudit.storage.atomic",
    "plaudit.types",
)
HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "sklearn", "matplotlib")


def modules() -> dict[str, Path]:
    """The modules of the package by the name below ``plaudit``."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = modules()


def layer_of(module: str) -> int:
    """The place of a module in :data:`LAYERS`.

    Raises:
        LookupError: it belongs to none.
    """
    fitting = [
        (len(pattern), place)
        for place, layer in enumerate(LAYERS)
        for pattern in layer
        if pattern == module
        or (pattern and (module.startswith(f"{pattern}.") or fnmatch(module, pattern)))
    ]
    if not fitting:
        raise LookupError(f"plaudit.{module} belongs to no layer; give it a place in LAYERS")
    return max(fitting)[1]


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
            full = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in full:
            package, _, below = name.partition(".")
            if package == "plaudit":
                # What a module defines is imported from the module; a package defines nothing.
                yield below if below in MODULES else below.rpartition(".")[0]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_run_down_the_layers(module: str) -> None:
    own = layer_of(module)
    up = {other for other in imports(MODULES[module]) if layer_of(other) < own}
    assert not up, f"plaudit.{module} imports {sorted(up)}, which lie above it"


def test_nothing_imports_a_tool_but_its_own_folder_and_the_operations() -> None:
    """Tools are found through the registry, so that one can be added or deleted by itself."""
    # Other tools write sequence classifiers of transformers, too, so that folder is shared.
    shared = "interop.sequence_classifier"
    for module, path in MODULES.items():
        parts = module.split(".")
        for other in imports(path):
            tool = other.split(".")
            if tool[0] == "interop" and len(tool) > 2 and parts[:2] != tool[:2]:
                assert parts[0] == "cli" or (parts[0] == "interop" and other.startswith(shared)), (
                    f"plaudit.{module} imports plaudit.{other}"
                )


def test_the_core_names_no_other_tool() -> None:
    texts = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.jinja")]
    naming = {
        path.relative_to(PACKAGE).as_posix()
        for path in texts
        if any(
            name in path.read_text(encoding="utf-8").lower()
            for name in ("llamafactory", "llama-factory", "llama_factory", "openrlhf")
        )
    }
    places = ("interop/", "cli/", "registry.py")
    assert not {name for name in naming if not name.startswith(places)}


def test_no_function_takes_more_than_seven_parameters() -> None:
    """More than seven is a record. Two kinds are not ours to choose: Typer reads the options of a
    command from its parameters, and transformers calls an attention with these."""
    given_from_outside = {"model.attention.interface.packed_attention"}
    long = {}
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not module.startswith(
                "cli"
            ):
                taken = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                count = len([one for one in taken if one.arg not in ("self", "cls")])
                if count > 7:
                    long[f"{module}.{node.name}"] = count
    assert long.keys() == given_from_outside, long


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    program = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
