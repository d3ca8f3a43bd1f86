"""The wheel and the sdist: their contents, their metadata, and an installed wheel that works alone.

They are built from a copy of the checkout, without a network. Set ``PLAUDIT_DIST`` to a folder of
built files to test those instead, as ``make dist`` does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from packaging.metadata import Metadata

import plaudit

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "plaudit"
NOT_SOURCE = shutil.ignore_patterns(
    *(".*", "__pycache__", "*.egg-info", "build", "dist", "site", "runs", "node_modules")
)

pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path, **environment: str) -> str:
    """What the command prints. The checkout is not on its path."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(source: Path, out: Path, *options: str) -> None:
    # The tools of this environment: an isolated build would download them.
    run(sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", out, cwd=source)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, because a build writes into its folder."""
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("source") / "copy", ignore=NOT_SOURCE)


@pytest.fixture(scope="module")
def dist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist, and the wheel that was built from the sdist."""
    built = os.environ.get("PLAUDIT_DIST")
    if built is not None:
        return ROOT / built
    out = tmp_path_factory.mktemp("dist")
    build(checkout, out)
    return out


def the_wheel(folder: Path) -> Path:
    (path,) = folder.glob("*.whl")
    return path


def wheel_contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def package_files() -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_wheel_holds_the_package_and_nothing_else(dist: Path) -> None:
    contents = wheel_contents(the_wheel(dist))
    assert package_files() == {name for name in contents if name.startswith("plaudit/")}
    (information,) = {name.partition("/")[0] for name in contents} - {"plaudit"}
    assert information == f"plaudit-{plaudit.__version__}.dist-info"
    assert f"{information}/licenses/LICENSE" in contents


def test_sdist_holds_the_package_and_what_describes_it(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    expected = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "constraints.txt"}
    assert package_files() | expected <= names
    folders = {name.partition("/")[0] for name in names if "/" in name}
    assert folders == {"plaudit", "plaudit.egg-info"}


def test_wheel_from_the_sdist_equals_the_one_from_the_checkout(
    dist: Path, checkout: Path, tmp_path: Path
) -> None:
    build(checkout, tmp_path, "--wheel")
    assert wheel_contents(the_wheel(dist)) == wheel_contents(the_wheel(tmp_path))


def test_metadata_is_valid_and_complete(dist: Path) -> None:
    contents = wheel_contents(the_wheel(dist))
    (text,) = (data for name, data in contents.items() if name.endswith(".dist-info/METADATA"))
    metadata = Metadata.from_email(text, validate=True)
    assert (metadata.name, str(metadata.version)) == ("plaudit", plaudit.__version__)
    assert str(metadata.requires_python) == ">=3.11"
    assert (metadata.license_expression, metadata.license_files) == ("Apache-2.0", ["LICENSE"])
    assert metadata.description == (ROOT / "README.md").read_text(encoding="utf-8")
    assert metadata.description_content_type == "text/markdown"
    assert metadata.summary
    assert metadata.keywords
    assert {"serve", "client", "ray", "gpu"} <= set(metadata.provides_extra or ())


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` folder of a new environment with the wheel.

    Dependencies come from the present environment, appended as a path: that reads none of its
    ``.pth`` files, so an editable plaudit there stays out.
    """
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.EnvBuilder(symlinks=True).create(folder)
    python = folder / "bin" / "python"
    wheel = the_wheel(dist)
    options = ("--quiet", "--no-deps", "--no-index", "--no-compile")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    present = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (packages / "present.pth").write_text("\n".join(present) + "\n", encoding="utf-8")
    return folder / "bin"


@pytest.fixture
def user(installed: Path, tmp_path: Path) -> Callable[..., str]:
    """Runs a program of the new environment in an empty folder."""

    def command(name: str, *arguments: object) -> str:
        cache = str(tmp_path / "cache")
        return run(installed / name, *arguments, cwd=tmp_path, PLAUDIT_CACHE=cache)

    return command


def test_the_wheel_is_what_is_imported(user: Callable[..., str], installed: Path) -> None:
    imported = Path(user("python", "-c", "import plaudit; print(plaudit.__file__)").strip())
    assert imported.is_relative_to(installed.parent)


def test_installed_commands_answer(user: Callable[..., str], tmp_path: Path) -> None:
    assert user("plaudit", "--version") == f"plaudit {plaudit.__version__}\n"
    assert "quickstart" in user("plaudit", "--help")
    user("plaudit", "init")
    (recipe,) = tmp_path.glob("*.yaml")
    assert "model" in yaml.safe_load(recipe.read_text(encoding="utf-8"))


@pytest.mark.heavy
def test_installed_wheel_tells_its_versions(user: Callable[..., str]) -> None:
    versions = json.loads(user("plaudit", "info", "--json"))["versions"]
    assert versions["plaudit"] == plaudit.__version__


@pytest.mark.heavy
def test_installed_wheel_audits_and_trains(user: Callable[..., str], tmp_path: Path) -> None:
    """With the embedded data and base, templates of the report, and a recipe of the package."""
    user("plaudit", "data", "audit", "documentation:heldout:50", "--out", "audit")
    assert list((tmp_path / "audit").glob("*.html"))
    small = ("data.train=documentation:training:60", "evaluate.perturbation_tests=0")
    changes = [*small, "data.test=documentation:heldout:20", "train.max_steps=2"]
    options = [word for change in changes for word in ("--set", change)]
    user("plaudit", "quickstart", *options, "--out", "run")
    for name in ("adapter_model.safetensors", "report.html", "README.md"):
        assert (tmp_path / "run" / name).is_file()
