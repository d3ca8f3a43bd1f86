"""Newer Pythons than the one that runs the tests, where they are on PATH: syntax and ``--help``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STATED = tuple(
    re.findall(r"Python :: (3\.\d+)\"", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
)
OTHERS = [version for version in STATED if version != "{}.{}".format(*sys.version_info)]

COMPILE = """
import pathlib, sys
for folder in sys.argv[1:]:
    for path in pathlib.Path(folder).rglob("*.py"):
        compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
"""


def run(version: str, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [f"python{version}", *arguments],
        cwd=ROOT,
        # pyenv's shims choose the interpreter by the first of these.
        env={
            **os.environ,
            "PYENV_VERSION": version,
            "PYTHONPATH": path,
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(params=OTHERS)
def version(request: pytest.FixtureRequest) -> str:
    """A version whose interpreter is on PATH and starts."""
    name: str = request.param
    if shutil.which(f"python{name}") is None or run(name, "--version").returncode != 0:
        pytest.skip(f"no python{name} on PATH")
    return name


def test_versions_are_stated() -> None:
    assert STATED == ("3.11", "3.12", "3.13")


def test_every_file_compiles_without_a_warning(version: str) -> None:
    folders = ("plaudit", "scripts", "tests", "benchmarks")
    done = run(version, "-W", "error", "-c", COMPILE, *folders)
    assert done.returncode == 0, done.stderr


def test_help_is_printed(version: str) -> None:
    """It loads typer and what typer needs: pure Python, which any version reads."""
    path = os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])
    done = run(version, "-m", "plaudit", "--help", path=path)
    assert done.returncode == 0, done.stderr
    assert "quickstart" in done.stdout
