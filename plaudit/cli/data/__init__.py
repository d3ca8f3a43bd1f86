"""``plaudit data``: commands that look at, clean and make preference data. Loads no torch.

To add one, write a function in a module beside this one and a row in :data:`COMMANDS`.
"""

from __future__ import annotations

from pkgutil import resolve_name

from plaudit.cli.help import HelpCommand, new_app

COMMANDS: dict[str, str] = {
    "audit": "plaudit.cli.data.audit:audit",
    "preview": "plaudit.cli.data.preview:preview",
    "perturb": "plaudit.cli.data.transform:perturb",
    "convert": "plaudit.cli.data.transform:convert",
    "split": "plaudit.cli.data.transform:split",
}
"""Name of a command to where it is (``module:name``)."""

app = new_app(
    help="""Audit, preview, perturb, convert and split data.

    Examples:
      plaudit data audit pairs.jsonl
      plaudit data split pairs.jsonl --out parts
    """
)

for _name, _target in COMMANDS.items():
    app.command(_name, cls=HelpCommand)(resolve_name(_target))
