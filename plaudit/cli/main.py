"""The command ``plaudit``: a table of verbs, loaded when used, and one place for errors.

To add a verb, write ``plaudit/cli/<verb>.py`` with a function whose parameters are typer arguments
and options, and add a row to :data:`VERBS`. A verb with verbs of its own names a ``typer.Typer``
instead of a function.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, NamedTuple

import typer

from plaudit import __version__
from plaudit.errors import InterruptedRunError, PlauditError, RecipeError, printable

USER_MISTAKE = 2
INTERRUPTED = 130


class Verb(NamedTuple):
    """Where a verb is (``module:name``) and its line in ``plaudit --help``."""

    target: str
    help: str


VERBS: dict[str, Verb] = {
    "quickstart": Verb(
        "plaudit.cli.quickstart:quickstart", "The whole main job offline, on embedded parts."
    ),
    "init": Verb("plaudit.cli.init:init", "Write a commented recipe to edit."),
    "train": Verb(
        "plaudit.cli.train:train", "Train a reward model from a recipe, or a base and data."
    ),
    "plan": Verb(
        "plaudit.cli.plan:plan", "Steps, memory, FLOPs and time, before renting anything."
    ),
    "eval": Verb("plaudit.cli.eval:evaluate", "Measure a reward model on data."),
    "calibrate": Verb(
        "plaudit.cli.calibrate:calibrate", "Fit a model's temperature on data, and store it."
    ),
    "compare": Verb(
        "plaudit.cli.compare:compare", "Which of two or more models is better, pair by pair."
    ),
    "score": Verb("plaudit.cli.score:score", "Score every response of a file."),
    "best-of": Verb("plaudit.cli.best_of:best_of", "Pick the best response of every row."),
    "serve": Verb("plaudit.cli.serve:serve", "Answer HTTP requests for rewards."),
    "import": Verb(
        "plaudit.cli.import_:import_model", "Make a plaudit folder of another tool's model."
    ),
    "export": Verb("plaudit.cli.export:export", "Write a reward model for another tool, checked."),
    "merge": Verb("plaudit.cli.merge:merge", "Average the weights of reward models of one base."),
    "push": Verb("plaudit.cli.push:push", "Upload a reward model to the Hub, looked over first."),
    "pull": Verb("plaudit.cli.pull:pull", "Download a reward model from the Hub."),
    "data": Verb("plaudit.cli.data:app", "Look at, clean and make preference data."),
    "card": Verb("plaudit.cli.card:card", "Rewrite a run's model card from its recorded facts."),
    "report": Verb("plaudit.cli.report:report", "Rewrite the HTML report from recorded facts."),
    "info": Verb("plaudit.cli.info:info", "Show versions, devices, the cache and optional parts."),
}


def build(arguments: Sequence[str]) -> typer.Typer:
    """The application for one command line: only the verb it names is imported.

    Loading a verb may import torch, so ``plaudit --help`` shows the others from the table alone.
    """
    app = typer.Typer(
        name="plaudit",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Reward models from preference comparisons: train, measure, use.",
        # Error messages and help hold paths and user data: never read as markup.
        rich_markup_mode=None,
    )
    app.callback()(_root)
    # No option of the root takes a value, so the first word without a dash is the verb.
    named = next((word for word in arguments if not word.startswith("-")), None)
    completing = "_PLAUDIT_COMPLETE" in os.environ
    for name, verb in VERBS.items():
        if completing or name == named:
            _register(app, name, verb)
        else:
            app.command(name, help=verb.help)(_unloaded)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0 done, 1 failed, 2 the user's to put right.

    Anything but a PlauditError is a defect and keeps its traceback.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        build(words)(args=words, prog_name="plaudit")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
        # Ctrl-C is the user's doing; typer ends with 130 then, or with 1 while it asks something.
        interrupted = code == INTERRUPTED or isinstance(stop.__context__, typer.Abort)
        return USER_MISTAKE if interrupted else code
    except InterruptedRunError as error:
        # A launcher hands the signal to every process; one of them speaks.
        if os.environ.get("RANK", "0") == "0":
            print(f"plaudit: {one_line(str(error))}", file=sys.stderr)
        return USER_MISTAKE
    except RecipeError as error:
        print(f"plaudit: {listed(error.problems)}", file=sys.stderr)
        return USER_MISTAKE
    except PlauditError as error:
        print(f"plaudit: {one_line(str(error))}", file=sys.stderr)
        return USER_MISTAKE
    except KeyboardInterrupt:
        print("plaudit: stopped.", file=sys.stderr)
        return USER_MISTAKE
    return 0


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
    """Stands for a verb that this command line does not name."""
    raise AssertionError("a verb that was not named cannot be called")


def _register(app: typer.Typer, name: str, verb: Verb) -> None:
    module, _, attribute = verb.target.partition(":")
    target = getattr(import_module(module), attribute)
    if isinstance(target, typer.Typer):
        app.add_typer(target, name=name, help=verb.help)
    else:
        app.command(name)(target)
