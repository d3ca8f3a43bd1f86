"""``plaudit data audit DATA…``: audit preference data, and write a cleaned copy."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from plaudit.cli import options
from plaudit.cli.help import CHECK, DATA, OUTPUT
from plaudit.errors import printable

if TYPE_CHECKING:
    from rich.console import Console

    from plaudit.data.audit.run import AuditReport, Finding

STYLES: Final = {"error": "bold red", "warning": "yellow", "info": "cyan"}


def audit(
    data: Annotated[list[str], typer.Argument(metavar="DATA", help="Files, folders or Hub ids.")],
    eval_: Annotated[
        list[str] | None,
        typer.Option(
            "--eval",
            metavar="DATA",
            rich_help_panel=DATA,
            help="Held-out data whose prompts must not be in DATA.",
        ),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:PATH]",
            rich_help_panel=DATA,
            help="Benchmark suite whose prompts must not be in DATA, as in plaudit eval.",
        ),
    ] = None,
    loss: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            rich_help_panel=CHECK,
            help="Training objective (loss.kind of a recipe), which decides what rows can be "
            "trained on.",
        ),
    ] = "bradley_terry",
    max_length: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            rich_help_panel=CHECK,
            help="Maximum length in tokens; longer rows are truncated or skipped in training.",
        ),
    ] = 2048,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            rich_help_panel=CHECK,
            help="Tokenizer to count tokens with: folder, Hub id or embedded. Default: estimate "
            "from bytes.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            rich_help_panel=OUTPUT,
            help="Write audit.json and audit.html to this new folder.",
        ),
    ] = None,
    fix: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=OUTPUT,
            help="Write a cleaned copy of DATA, with a change log beside it.",
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", rich_help_panel=CHECK, help="Exit with 1 if there is an error."),
    ] = False,
    format_: options.Format = None,
    columns: options.Columns = None,
    json: Annotated[
        bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print audit.json on stdout.")
    ] = False,
) -> None:
    """Audit preference data for duplicates, contradictions, leaks and broken rows.

    Examples:
      plaudit data audit pairs.jsonl --eval held-out.jsonl
      plaudit data audit pairs.jsonl --fix clean.jsonl --out audits/pairs
    """
    from plaudit.audit_data import AuditOptions, audit_data
    from plaudit.cli.printing import print_lines, quiet_console
    from plaudit.evaluate_model import progress_bars
    from plaudit.report.audit import audit_files
    from plaudit.storage.atomic import check_new_folder, write_folder

    if out is not None:
        check_new_folder(out)
    console = quiet_console()
    with progress_bars(console) as on_progress:
        report = audit_data(
            AuditOptions(
                data=data,
                eval_data=eval_ or (),
                suites=suite or (),
                loss=loss,
                max_length=max_length,
                tokenizer=tokenizer,
                fix=fix,
                format=format_,
                columns=options.parse_columns(columns),
            ),
            on_progress=on_progress,
        ).report
    show_report(console, report)
    if out is not None:
        write_folder(out, audit_files(report))
        print_lines(console, [f"Written to {out}"])
    if json:
        print(json_module.dumps(asdict(report)))
    if strict and report.errors:
        raise typer.Exit(1)


def show_report(console: Console, report: AuditReport) -> None:
    """Sentences, a table of the findings, and how many checks flagged no row."""
    from plaudit.report.audit import sentences

    for line in sentences(report):
        console.print(Text(line), highlight=False)
    findings = [finding for finding in report.findings if finding.rows]
    if findings:
        console.print()
        console.print(Padding(_table(findings), (0, 0, 1, 2)))
    from plaudit.evaluation.numbers import counted

    passed = sum(finding.rows == 0 for finding in report.findings)
    if passed:
        console.print(Text(f"{counted(passed, 'other check')} found nothing."))


def _table(findings: Sequence[Finding]) -> Table:
    from plaudit.cli.printing import results_table
    from plaudit.report.audit import remark, share

    table = results_table("finding", "rows", "share")
    table.add_column("examples", overflow="fold")
    severity = None
    for finding in findings:
        if finding.severity != severity:
            severity = finding.severity
            table.add_row(Text(severity, style=STYLES[severity]))
        # Folders would fill the column; audit.json has whole paths.
        where = ", ".join(example.where.rpartition("/")[2] for example in finding.examples[:2])
        title = f"{finding.title} ({remark(finding)})" if remark(finding) else finding.title
        table.add_row(
            Text(f"  {printable(title)}"), f"{finding.rows:,}", share(finding), Text(where)
        )
    return table
