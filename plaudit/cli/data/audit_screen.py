"""The audit on the terminal: a progress bar while it runs, a table when it is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from plaudit.errors import printable
from plaudit.report.audit_words import (
    STYLES,
    compared,
    sentences,
    shown_details,
    shown_share,
)

if TYPE_CHECKING:
    from rich.console import Console

    from plaudit.data.audit.rows import Progress


@contextmanager
def progress(console: Console) -> Iterator[Progress]:
    """A bar per thing that is done, with rows per second and the time that is left."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, Any] = {}
    with Bars(*columns, console=console, transient=True) as bars:

        def heard(doing: str, done: int, total: int | None) -> None:
            if doing not in tasks:
                tasks[doing] = bars.add_task(escape(doing), total=total)
            bars.update(tasks[doing], completed=done, total=total)

        yield heard


def show_audit(console: Console, facts: Mapping[str, Any]) -> None:
    """What was found, what it means, and what was looked for and not found."""
    for line in sentences(facts):
        console.print(Text(line), highlight=False)
    found = [finding for finding in facts["findings"] if finding["rows"]]
    if found:
        console.print()
        console.print(Padding(_table(found), (0, 0, 1, 2)))
    clean = [f["title"].lower() for f in facts["findings"] if f["rows"] == 0]
    if clean:
        console.print(Text(f"Looked for and not found: {', '.join(clean)}."))
    not_compared = compared(facts)
    if not_compared:
        console.print(Text(not_compared))


def _table(findings: list[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("found", overflow="fold", min_width=16)
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("for example", overflow="fold")
    severity = None
    for finding in findings:
        if finding["severity"] != severity:
            severity = finding["severity"]
            table.add_row(Text(severity, style=STYLES[severity]))
        # Folders would fill the column; audit.json has whole paths.
        where = ", ".join(
            example["where"].rpartition("/")[2] for example in finding["examples"][:2]
        )
        details = shown_details(finding)
        table.add_row(
            Text(printable(f"  {finding['title']}" + (f" ({details})" if details else ""))),
            f"{finding['rows']:,}",
            shown_share(finding),
            Text(where),
        )
    return table
