"""``plaudit export MODEL --to TARGET --out DIR``: write a reward model for another tool."""

from __future__ import annotations

import json as json_module
from typing import Annotated, Literal, TypeAlias

import typer

from plaudit import registry
from plaudit.cli import options
from plaudit.cli.help import OUTPUT
from plaudit.types import WeightDtype

Target: TypeAlias = Literal[registry.names("exporter")]  # type: ignore[valid-type]


def export(
    model: options.Model,
    to: Annotated[
        Target,
        typer.Option(
            metavar="LAYOUT",
            rich_help_panel=OUTPUT,
            help=f"Layout to write: {', '.join(registry.names('exporter'))}.",
        ),
    ],
    out: options.FolderOut,
    dtype: Annotated[
        WeightDtype,
        typer.Option(
            metavar="DTYPE",
            rich_help_panel=OUTPUT,
            help="Precision of the written weights: float32, bfloat16 or float16. The head stays "
            "float32.",
        ),
    ] = "float32",
    max_shard_size: Annotated[
        str,
        typer.Option(metavar="SIZE", rich_help_panel=OUTPUT, help="Maximum size of a weight file."),
    ] = "5GB",
    peft_config: Annotated[
        Literal["0.11"] | None,
        typer.Option(
            metavar="VERSION",
            rich_help_panel=OUTPUT,
            help="Write adapter_config.json for an older release of PEFT: 0.11.",
        ),
    ] = None,
    normalize: Annotated[
        bool,
        typer.Option(
            "--normalize",
            rich_help_panel=OUTPUT,
            help="Normalize rewards to (reward - mean) / std, if the layout supports it.",
        ),
    ] = False,
    rows: options.Rows = None,
    tolerance: options.Tolerance = None,
    no_check: options.NoCheck = False,
    base: options.Base = None,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.ResultAsJson = False,
) -> None:
    """Export a reward model for another tool and verify it.

    The check loads the export as that tool does and compares rewards.

    Examples:
      plaudit export runs/first --to merged --out exports/first
      plaudit export runs/first --to openrlhf --out exports/first --dtype bfloat16
    """
    from plaudit.cli.printing import parity_lines, print_lines, starting

    with starting() as console:
        from plaudit.interop.export import ExportOptions
        from plaudit.interop.export import export as run
        from plaudit.reward_model import LoadOptions

    with console.status("exporting"):
        result = run(
            model,
            to,
            out,
            ExportOptions(
                load=LoadOptions(base=base, device=device, trust_remote_code=trust_remote_code),
                check=options.check_options(rows, tolerance, no_check=no_check),
                dtype=dtype,
                max_shard_size=max_shard_size,
                peft_config=peft_config,
                normalize=normalize,
            ),
        )
    if json:
        options.print_json(result)
    lines = [f"Written to {out} ({to}, {dtype})", *parity_lines(result.parity)]
    lines += [f"  note: {note}" for note in result.notes]
    if result.serving:
        lines.append(f"  for vLLM: --pooler-config '{json_module.dumps(dict(result.serving))}'")
    print_lines(console, lines)
