"""The command line as a whole: help, versions, exit codes, and errors in one sentence."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest
import typer

from plaudit import __version__
from plaudit.cli import main as cli
from plaudit.cli.main import COMMANDS, Command, main, one_line
from plaudit.errors import InterruptedRunError, RecipeError


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that commands of these tests live in."""
    module = ModuleType("plaudit.cli.test_verbs")
    monkeypatch.setitem(sys.modules, "plaudit.cli.test_verbs", module)
    return module


def add(monkeypatch: pytest.MonkeyPatch, module: ModuleType, target: object) -> None:
    module.target = target  # type: ignore[attr-defined]
    monkeypatch.setitem(COMMANDS, "trial", Command("test_verbs:target", "A trial."))


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, verb_row in COMMANDS.items():
        assert name in shown
        assert verb_row.help in " ".join(shown.split())


def test_help_of_eval_counts_the_perturbations(capsys: pytest.CaptureFixture[str]) -> None:
    from plaudit.data.perturb.table import PERTURBATIONS

    assert main(["eval", "--help"]) == 0
    assert f"in up to {len(PERTURBATIONS)} ways" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "choices"),
    [
        *(
            (f"{command} --dtype wrong", "'auto', 'float32', 'bfloat16', 'float16'")
            for command in ("eval a b", "calibrate a b", "compare a b", "score a b", "serve a")
        ),
        ("best-of a b --dtype wrong", "'auto', 'float32', 'bfloat16', 'float16'"),
        ("export a --out b --to wrong", "'adapter', 'merged', 'llamafactory', 'openrlhf'"),
        ("data convert a --out b --to ranked --pairs wrong", "'all', 'best-worst', 'none'"),
        ("data split a --out b --by wrong", "'prompt', 'row'"),
    ],
)
def test_a_wrong_choice_is_a_usage_error(
    words: str, choices: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    option = words.split()[-2]
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"Error: Invalid value for '{option}': 'wrong' is not one of {choices}."


def test_help_and_version_load_nothing_heavy_and_answer_at_once() -> None:
    program = (
        "import sys\nfrom plaudit.cli.main import main\ncode = main([sys.argv[1]])\n"
        "heavy = [n for n in ('torch', 'transformers', 'peft', 'datasets') if n in sys.modules]\n"
        "sys.exit(code or len(heavy))"
    )
    for option in ("--help", "--version"):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", program, option], check=False)
        assert done.returncode == 0
        # A third of a second on an idle machine; torch alone would take several.
        assert time.perf_counter() - start < 3


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"plaudit {__version__}\n"


def test_python_m_plaudit() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "plaudit", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"plaudit {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["card"], ["card", "a", "b"], ["plan", "--pairs", "x"], ["--no"]]
)
def test_usage_errors_are_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Error" in captured.err


def test_a_users_mistake_is_one_line_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "[bold]none[/bold].yaml"
    assert main(["plan", str(missing)]) == 2
    assert capsys.readouterr().err == (f"plaudit: {missing}: the recipe file does not exist.\n")


def test_what_data_says_is_not_markup_and_not_terminal_codes() -> None:
    assert one_line("a [red]b[/red]\n c \x1b[31m\x07") == "a [red]b[/red] c \\x1b[31m\\x07"


def test_errors_of_verbs(
    monkeypatch: pytest.MonkeyPatch, command: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> NoReturn:
        raise RecipeError("something\nis wrong.")

    add(monkeypatch, command, fails)
    assert main(["trial"]) == 2
    assert capsys.readouterr().err == "plaudit: something is wrong.\n"


def test_being_stopped_is_code_2_and_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, command: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped() -> NoReturn:
        raise InterruptedRunError("stopped; go on with --resume.")

    add(monkeypatch, command, stopped)
    assert main(["trial"]) == 2
    assert "go on with --resume" in capsys.readouterr().err

    def interrupted() -> NoReturn:
        raise KeyboardInterrupt

    add(monkeypatch, command, interrupted)
    assert main(["trial"]) == 2


def test_a_verb_may_end_with_a_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, command: ModuleType
) -> None:
    def unequal() -> NoReturn:
        raise typer.Exit(1)

    add(monkeypatch, command, unequal)
    assert main(["trial"]) == 1


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, command: ModuleType) -> None:
    def broken() -> NoReturn:
        raise ZeroDivisionError("ours")

    add(monkeypatch, command, broken)
    with pytest.raises(ZeroDivisionError, match="ours"):
        main(["trial"])


def test_a_verb_with_verbs_of_its_own(
    monkeypatch: pytest.MonkeyPatch, command: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    group = typer.Typer()

    @group.command()
    def first(word: str) -> None:
        print(word.upper())

    @group.command()
    def second() -> None:
        print("second")

    add(monkeypatch, command, group)
    assert main(["trial", "first", "loud"]) == 0
    assert capsys.readouterr().out == "LOUD\n"
    assert main(["--help"]) == 0
    assert "A trial." in capsys.readouterr().out


def test_only_the_named_verb_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "broken", Command("no_such_module:command", "Never loaded."))
    assert main(["--version"]) == 0
    with pytest.raises(ModuleNotFoundError):
        cli.build(["broken"])
