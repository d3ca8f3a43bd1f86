"""How ``--help`` is laid out: options in groups, one metavar each, and examples at the end.

The help of a command is the docstring of its function. Its first paragraph is the line in the list
of commands; what stands behind a line ``Examples:`` is shown last, as it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

MODEL: Final = "Model options"
DATA: Final = "Data options"
TRAINING: Final = "Training options"
PERTURBATION: Final = "Perturbation options"
SPLIT: Final = "Split options"
EVALUATION: Final = "Evaluation options"
CHECK: Final = "Check options"
HARDWARE: Final = "Hardware options"
SERVER: Final = "Server options"
OUTPUT: Final = "Output options"
OPTIONS: Final = "Options"

PANELS: Final = (
    DATA,
    MODEL,
    TRAINING,
    PERTURBATION,
    SPLIT,
    EVALUATION,
    HARDWARE,
    SERVER,
    CHECK,
    OUTPUT,
    OPTIONS,
)
"""Groups of options, in the order in which they are shown."""

WIDEST: Final = 100
"""Columns that help takes at the most."""

_EXAMPLES = "\nExamples:\n"


def description(docstring: str | None) -> str:
    """The help of a command, without its examples."""
    return inspect.cleandoc(docstring or "").partition(_EXAMPLES)[0].strip()


def examples(docstring: str | None) -> list[str]:
    """The examples of a command, a line each."""
    lines = inspect.cleandoc(docstring or "").partition(_EXAMPLES)[2].splitlines()
    return [line.strip() for line in lines if line.strip()]


class _Layout:
    """What the help of a command and that of a group have in common."""

    params: list[Any]
    help: str | None
    get_params: Callable[[Any], list[Any]]

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """``[OPTIONS] MODEL [DATA]...``"""
        arguments = (p for p in self.get_params(ctx) if p.param_type_name == "argument")
        return ["[OPTIONS]", *map(_usage, arguments)]

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(description(self.help))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, then options by group."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if param.hidden:
                continue
            if param.param_type_name == "argument":
                sections.setdefault("Arguments", []).append((_name(param), param.help or ""))
            else:
                panel = param.rich_help_panel or OPTIONS
                sections.setdefault(panel, []).append((_names(param), _meaning(param)))
        for title in ("Arguments", *PANELS):
            _write_section(formatter, title, sections.get(title, ()))

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        lines = examples(self.help)
        if lines:
            with formatter.section("Examples"):
                for line in lines:
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


class HelpCommand(_Layout, TyperCommand):
    """A command with this help."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            # typer 0.29 checks choices with pydantic, and prints its prefix.
            error.message = error.message.removeprefix("Value error, ")
            raise


class HelpGroup(_Layout, TyperGroup):
    """Commands with this help, listed by group."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["[OPTIONS]", "COMMAND [ARGS]..."]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Commands by group, then options."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            first, _, _ = description(command.help).partition("\n\n")
            group = command.rich_help_panel
            title = group if isinstance(group, str) else "Commands"
            sections.setdefault(title, []).append((name, " ".join(first.split())))
        widest = max(len(name) for rows in sections.values() for name, _ in rows)
        for title, rows in sections.items():
            aligned = [(f"{name:<{widest}}", words) for name, words in rows]
            _write_section(formatter, title, aligned)
        super().format_options(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Commands are listed already, before the options."""


def _write_section(formatter: Any, title: str, rows: Iterable[tuple[str, str]]) -> None:
    rows = list(rows)
    if rows:
        with formatter.section(title):
            formatter.write_dl(rows)


def _name(param: Any) -> str:
    name: str = param.metavar or param.name.upper()
    return name


def _usage(param: Any) -> str:
    """An argument in the usage line: in brackets where it may be left out."""
    name = _name(param) if param.required else f"[{_name(param)}]"
    return name if param.nargs == 1 else f"{name}..."


def _names(param: Any) -> str:
    """``-h, --help`` or ``--out PATH``."""
    names = ", ".join(sorted(param.opts, key=len))
    names += "".join(f" / {name}" for name in param.secondary_opts)
    return names if param.is_flag else f"{names} {param.metavar or 'VALUE'}"


def _meaning(param: Any) -> str:
    """What an option does, and whether it is required, repeatable or has a default."""
    remarks = []
    if param.required:
        remarks.append("required")
    if param.multiple:
        remarks.append("repeatable")
    default = param.default
    if param.is_flag:
        default = param.opts[0][2:] if default and param.secondary_opts else None
    if default is not None and param.show_default and not callable(default):
        shown = f"{default:g}" if isinstance(default, float) else str(default)
        remarks.append(f"default: {shown}")
    return (param.help or "") + (f"  [{', '.join(remarks)}]" if remarks else "")


def new_app(**settings: Any) -> typer.Typer:
    """A Typer whose help is laid out here."""
    return typer.Typer(
        cls=HelpGroup,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        # Error messages and help hold paths and user data: never read as markup.
        rich_markup_mode=None,
        context_settings={
            "help_option_names": ["-h", "--help"],
            "max_content_width": WIDEST,
        },
        **settings,
    )
