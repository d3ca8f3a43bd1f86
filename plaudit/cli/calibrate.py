"""``plaudit calibrate MODEL DATA…``: fit a model's temperature, and store it if that is better."""

from __future__ import annotations

from typing import Annotated

import typer

from plaudit.cli import options


def calibrate(
    model: options.Model,
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA",
            help="Files or Hub ids of labelled comparisons that the model was not trained on.",
        ),
    ],
    format_: options.Format = None,
    columns: options.Columns = None,
    base: options.Base = None,
    dtype: options.Precision = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.ResultAsJson = False,
) -> None:
    """Fit a model's temperature on held-out data.

    The temperature is stored in the model folder if it lowers the log loss significantly; otherwise
    nothing changes and the exit code is 1.

    Examples:
      plaudit calibrate runs/first held-out.jsonl
    """
    from plaudit.cli.printing import print_lines, starting

    sources = [options.source(path, format_, columns) for path in data]
    with starting() as console:
        from plaudit.calibrate_model import calibrate as run
        from plaudit.evaluate_model import OpenOptions

    opened = OpenOptions(base=base, dtype=dtype, trust_remote_code=trust_remote_code)
    result = run(model, sources, opened, console=console)
    if json:
        options.print_json(result)
    print_lines(console, (result.sentence + result.data.skipped, *result.data.unread_lines))
    if not result.stored:
        raise typer.Exit(1)
