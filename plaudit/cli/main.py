"""The command ``plaudit``: a table of commands, loaded when used, and one place for errors.

To add a command, write ``plaudit/cli/<command>.py`` with a function whose parameters are typer
arguments and options and whose docstring is its help, and add a row to :data:`COMMANDS`. A command
with commands of its own names a ``typer.Typer`` instead of a function.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pkgutil import resolve_name
from typing import Annotated, Final, NamedTuple

import typer

from plaudit import __version__
from plaudit.cli.help import HelpCommand, new_app
from plaudit.errors import InterruptedRunError, PlauditError, RecipeError, printable

USAGE_ERROR = 2
INTERRUPTED = 130


class Command(NamedTuple):
    """Where a command is (``module:name`` below here), and its line and group in the help.

    The line is the first paragraph of the command's docstring; it stands here too, so that the
    list of commands loads none of them.
    """

    target: str
    help: str
    group: str = "Other"


COMMANDS: dict[str, Command] = {
    "quickstart": Command(
        "train:quickstart", "Run an end-to-end demo: train, evaluate and report offline.", "Train"
    ),
    "init": Command("train:init", "Write a commented recipe to edit.", "Train"),
    "train": Command("train:train", "Train a reward model from preference comparisons.", "Train"),
    "plan": Command("plan:plan", "Estimate steps, memory, FLOPs and time of a run.", "Train"),
    "eval": Command(
        "eval:evaluate", "Evaluate a reward model on comparisons and benchmarks.", "Evaluate"
    ),
    "compare": Command("compare:compare", "Compare reward models on the same pairs.", "Evaluate"),
    "calibrate": Command(
        "calibrate:calibrate", "Fit a model's temperature on held-out data.", "Evaluate"
    ),
    "report": Command(
        "report:report", "Rewrite the HTML report and plots from recorded metrics.", "Evaluate"
    ),
    "score": Command(
        "score:score", "Score the responses of a file, or responses to one prompt.", "Use"
    ),
    "best-of": Command("score:best_of", "Pick the best response of every row (best-of-N).", "Use"),
    "serve": Command("serve:serve", "Serve rewards over HTTP.", "Use"),
    "push": Command("hub:push", "Validate and upload a reward model to the Hub.", "Share"),
    "pull": Command("hub:pull", "Download a reward model from the Hub.", "Share"),
    "import": Command(
        "import_:import_model", "Convert another tool's reward model to a model folder.", "Share"
    ),
    "export": Command(
        "export:export", "Export a reward model for another tool and verify it.", "Share"
    ),
    "merge": Command(
        "merge:merge", "Average the weights of reward models with the same base.", "Share"
    ),
    "card": Command("report:card", "Rewrite a run's model card from recorded metrics.", "Share"),
    "data": Command("data:app", "Audit, preview, perturb, convert and split data.", "Data"),
    "info": Command("info:info", "Show versions, devices, cache and optional packages."),
}

RENAMED: Final[dict[str, str]] = {
    "compare --level": "compare --alpha",
    "data mutate": "data perturb",
    "data perturb --operators": "data perturb --perturbations",
    "eval --behaviour": "eval --perturbation-tests",
    "eval --gate-level": "eval --alpha",
    "eval --gate-metric": "eval --regression-metric",
    "import --era": "import --source-version",
}
"""Old name of a command, or of one of its options, to its name now: a usage error says it."""


HELP: Final = """Train, evaluate and serve reward models from preference comparisons.

Run plaudit COMMAND --help for the options and examples of a command.

Examples:
  plaudit quickstart
  plaudit train --model Qwen/Qwen3-0.6B --data pairs.jsonl --out runs/first
  plaudit eval runs/first held-out.jsonl
"""


def build(arguments: Sequence[str]) -> typer.Typer:
    """The application for one command line: only the command it names is imported.

    Loading a command may import torch, so ``plaudit --help`` shows the others from the table alone.
    """
    app = new_app(name="plaudit", help=HELP)
    app.callback()(_root)
    # No option of the root takes a value, so the first word without a dash is the command.
    named = next((word for word in arguments if not word.startswith("-")), None)
    completing = "_PLAUDIT_COMPLETE" in os.environ
    for name, command in COMMANDS.items():
        if not completing and name != named:
            app.command(name, help=command.help, rich_help_panel=command.group)(_unloaded)
        elif isinstance(target := resolve_name(f"plaudit.cli.{command.target}"), typer.Typer):
            app.add_typer(target, name=name, rich_help_panel=command.group)
        else:
            app.command(name, cls=HelpCommand, rich_help_panel=command.group)(target)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0 done, 1 failed, 2 usage error.

    Anything but a PlauditError is a defect and keeps its traceback.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        check_names(words)
        build(words)(args=words, prog_name="plaudit")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
        # Ctrl-C is the user's doing; typer ends with 130 then, or with 1 while it asks something.
        interrupted = code == INTERRUPTED or isinstance(stop.__context__, typer.Abort)
        return USAGE_ERROR if interrupted else code
    except PlauditError as error:
        # A launcher hands the signal to every process; one of them speaks.
        if not isinstance(error, InterruptedRunError) or os.environ.get("RANK", "0") == "0":
            problems = error.problems if isinstance(error, RecipeError) else [str(error)]
            print(f"plaudit: {listed(problems)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("plaudit: stopped.", file=sys.stderr)
        return USAGE_ERROR
    return 0


def check_names(arguments: Sequence[str]) -> None:
    """Raises PlauditError where a command line has an old name of :data:`RENAMED`."""
    for old, new in RENAMED.items():
        command, _, option = old.partition(" --")
        words = command.split()
        options = {argument.partition("=")[0] for argument in arguments}
        if list(arguments[: len(words)]) == words and (not option or f"--{option}" in options):
            raise PlauditError(f"plaudit {old} was renamed to plaudit {new}.")


def run() -> None:
    """The console script."""
    sys.exit(main())


def one_line(message: str) -> str:
    """The message without line breaks, and without control characters that data may hold."""
    return printable(" ".join(message.split()))


def listed(problems: Sequence[str]) -> str:
    """One problem as a line; several under their number, one a line."""
    lines = [one_line(problem) for problem in problems]
    return lines[0] if len(lines) == 1 else "\n  ".join([f"{len(lines)} problems:", *lines])


def _show_version(asked: bool) -> None:
    if asked:
        print(f"plaudit {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Options of the command itself; typer reads them from this signature."""


def _unloaded() -> None:
    """Stands for a command that this command line does not name."""
    raise AssertionError("a command that was not named cannot be called")
