"""``plaudit data``: commands that look at, clean and make preference data. Loads no torch.

To add one, write a function in a module beside this one and a row in :data:`COMMANDS`.
"""

from __future__ import annotations

from pkgutil import resolve_name

import typer

COMMANDS: dict[str, str] = {
    "audit": "plaudit.cli.data.audit:audit",
    "preview": "plaudit.cli.data.preview:preview",
    "perturb": "plaudit.cli.data.transform:perturb",
    "convert": "plaudit.cli.data.transform:convert",
    "split": "plaudit.cli.data.transform:split",
}
"""Name of a command to where it is (``module:name``)."""

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

for _name, _target in COMMANDS.items():
    app.command(_name)(resolve_name(_target))
