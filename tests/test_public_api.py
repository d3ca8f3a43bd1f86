"""``import plaudit`` is light, and its names mean what they say in any order of imports."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import plaudit
from tests.conftest import pair_rows, write_jsonl
from tests.warm import environment_of_a_user


def test_importing_plaudit_loads_nothing_heavy() -> None:
    program = (
        "import sys, plaudit; dir(plaudit)\n"
        "print(*[n for n in ('torch', 'numpy', 'pydantic', 'transformers') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = plaudit.trian


def test_public_names() -> None:
    assert set(plaudit.__all__) == {"__version__", "evaluate", "load", "train"}
    for name in set(plaudit.__all__) - {"__version__"}:
        assert callable(getattr(plaudit, name))


@pytest.mark.heavy
def test_loading_and_scoring_say_nothing_that_is_not_so(finished_run: Path) -> None:
    """The head of an adapter is trained, whatever transformers says of its base."""
    program = (
        "import plaudit\n"
        f"model = plaudit.load({str(finished_run)!r})\n"
        "print(model)\n"
        "assert model.score('a', ['b', 'b']) == 2 * [model.score('a', ['b'])[0]]"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        # An import of bitsandbytes brings up one of torch's own deprecations.
        env=environment_of_a_user()
        | {"PYTHONWARNINGS": "default,ignore::DeprecationWarning:torch.jit._script"},
    )
    # The bar for loading weights is drawn again and again on its line.
    drawn = [line.strip() for line in done.stderr.splitlines() if "Loading weights" not in line]
    assert not any(drawn), done.stderr
    (shown,) = done.stdout.splitlines()
    assert shown.startswith(f"RewardModel(source='{finished_run}', base=")
    assert shown.endswith("max_length=256, device='cpu', dtype='float32', layout='packed')")


@pytest.mark.heavy
def test_examples_of_docstrings_run(
    finished_run: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/first").symlink_to(finished_run)
    (tmp_path / "my-base").symlink_to(tiny_base)
    for name in ("pairs", "held_out"):
        write_jsonl(tmp_path / f"{name}.jsonl", pair_rows(24, seed=0))
    monkeypatch.chdir(tmp_path)
    from plaudit.evaluate_model import EvaluateOptions

    names = {"plaudit": plaudit, "model": plaudit.load("runs/first")}
    runner = doctest.DocTestRunner()
    documented = (plaudit.load, plaudit.train, plaudit.evaluate, EvaluateOptions)
    for public in (*documented, type(names["model"])):
        for example in doctest.DocTestFinder().find(public, globs=dict(names)):
            runner.run(example)
    assert runner.tries >= 15
    assert runner.failures == 0
