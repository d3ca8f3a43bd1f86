"""Files that hosts and tools read agree with the project: versions, commands, Python versions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import plaudit

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def document(name: str) -> Any:
    return yaml.safe_load(text_of(name))


def steps(job: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = document(".github/workflows/ci.yml")["jobs"][job]["steps"]
    return found


def test_pre_commit_has_the_ruff_of_constraints() -> None:
    (version,) = re.findall(r"^ruff==(.*)$", text_of("constraints.txt"), re.MULTILINE)
    hooks = [
        hook
        for repository in document(".pre-commit-config.yaml")["repos"]
        for hook in repository["hooks"]
        if "ruff" in hook["id"]
    ]
    assert len(hooks) == 2
    for hook in hooks:
        assert hook["additional_dependencies"] == [f"ruff=={version}"]


def test_citation_has_the_version_and_licence_of_the_package() -> None:
    citation = document("CITATION.cff")
    assert citation["version"] == plaudit.__version__
    assert f'license = "{citation["license"]}"' in text_of("pyproject.toml")


def test_ci_runs_every_stated_python() -> None:
    stated = re.findall(r"Python :: (3\.\d+)\"", text_of("pyproject.toml"))
    jobs = document(".github/workflows/ci.yml")["jobs"]
    (first,) = (step["with"] for step in steps("checks") if "setup-python" in step.get("uses", ""))
    assert [first["python-version"], *jobs["tests"]["strategy"]["matrix"]["python"]] == stated
    assert any(step.get("run") == ".ci/run" for step in steps("checks"))


@pytest.mark.parametrize("job", ["checks", "tests"])
def test_ci_may_only_read(job: str) -> None:
    workflow = document(".github/workflows/ci.yml")
    assert workflow["permissions"] == {"contents": "read"}
    assert "permissions" not in workflow["jobs"][job]
    for step in steps(job):
        assert "uses" not in step or re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])


def test_templates_name_make_targets_that_there_are() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    for path in (GITHUB / "PULL_REQUEST_TEMPLATE.md", ROOT / ".pre-commit-config.yaml"):
        named = re.findall(r"\bmake ([a-z-]+)", path.read_text(encoding="utf-8"))
        assert named
        assert set(named) <= targets
