"""``--help``: one line a command everywhere, options in groups, metavars, examples that parse."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import typer

from plaudit.cli.data import COMMANDS as DATA_COMMANDS
from plaudit.cli.help import PANELS, WIDEST, description, examples
from plaudit.cli.main import COMMANDS, HELP, build, main

NAMES = [
    *((name,) for name in COMMANDS if name != "data"),
    *(("data", name) for name in DATA_COMMANDS),
]


def open_command(words: list[str]) -> tuple[Any, Any, list[str]]:
    """The command that a command line names, the context around it, and its own arguments."""
    command: Any = typer.main.get_command(build(words))
    context = command.make_context("plaudit", list(words), resilient_parsing=True)
    name, command, rest = command.resolve_command(context, list(words))
    if name == "data":
        context = command.make_context(name, list(rest), parent=context, resilient_parsing=True)
        _, command, rest = command.resolve_command(context, list(rest))
    return command, context, rest


@pytest.fixture(params=NAMES, ids=" ".join)
def name(request: pytest.FixtureRequest) -> tuple[str, ...]:
    chosen: tuple[str, ...] = request.param
    return chosen


def test_the_list_of_commands_and_their_pages_have_one_line(name: tuple[str, ...]) -> None:
    command, _, _ = open_command([*name])
    line = " ".join(description(command.help).partition("\n\n")[0].split())
    if name[0] != "data":
        assert line == COMMANDS[name[0]].help
    assert line.endswith(".")
    # It fits the list on 80 columns, or takes two lines of it at the most.
    assert len(line) <= 80


def test_the_group_of_data_commands_has_the_line_of_the_list() -> None:
    group: Any = typer.main.get_command(build(["data"]))
    assert description(group.commands["data"].help) == COMMANDS["data"].help


def test_every_option_has_a_metavar_a_group_and_a_sentence(name: tuple[str, ...]) -> None:
    command, context, _ = open_command([*name])
    with command.make_context(name[-1], [], parent=context, resilient_parsing=True) as own:
        for param in command.get_params(own):
            assert param.help, param.name
            assert param.help[0].isupper() or param.help.startswith("NAME=")
            assert param.help.endswith("."), param.help
            if param.param_type_name == "argument":
                assert param.metavar == param.metavar.upper()
            elif not param.is_flag:
                assert param.metavar, param.name
                assert (param.rich_help_panel or "Options") in PANELS


@pytest.mark.parametrize("width", [80, 120])
def test_a_page_fits_the_terminal_and_has_no_types(
    name: tuple[str, ...],
    width: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert main([*name, "--help"]) == 0
    page = capsys.readouterr().out
    assert "<" not in page
    assert "[x" not in page
    assert page.startswith(f"Usage: plaudit {' '.join(name)} [OPTIONS]")
    for line in page.partition("\nExamples:\n")[0].splitlines():
        assert len(line) <= min(width, WIDEST)


@pytest.mark.parametrize("name", [(), ("data",), *NAMES], ids=" ".join)
def test_examples_parse(name: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Every option of an example exists and takes such a value."""
    if name == ():
        lines = examples(HELP)
    elif name == ("data",):
        command: Any = typer.main.get_command(build(["data"]))
        lines = examples(command.commands["data"].help)
    else:
        lines = examples(open_command([*name])[0].help)
    assert lines
    for line in lines:
        first, *words = shlex.split(line)
        assert first == "plaudit"
        assert tuple(words[: len(name)]) == name
        command, context, rest = open_command(words)
        with command.make_context("example", rest, parent=context) as parsed:
            assert parsed.params
    assert main([*name, "--help"]) == 0
    assert capsys.readouterr().out.rstrip().endswith(lines[-1])


def test_the_list_of_commands_is_grouped(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    groups = list(dict.fromkeys(command.group for command in COMMANDS.values()))
    assert groups == ["Train", "Evaluate", "Use", "Share", "Data", "Other"]
    places = [page.index(f"\n{group}:\n") for group in groups]
    assert places == sorted(places)
