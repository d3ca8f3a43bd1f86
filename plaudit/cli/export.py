"""``plaudit export MODEL --to TARGET --out DIR``: write a reward model for another tool."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from plaudit import registry
from plaudit.cli import options

Target: TypeAlias = Literal[registry.names("exporter")]  # type: ignore[valid-type]


def export(
    model: options.Model,
    to: Annotated[Target, typer.Option(help="Layout to write.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"],
        typer.Option(help="Precision of the weights; the head stays fp32."),
    ] = "fp32",
    max_shard_size: Annotated[
        str, typer.Option(help="Largest weight file of a whole model.")
    ] = "5GB",
    peft_config: Annotated[
        Literal["0.11"] | None,
        typer.Option(help="Write adapter_config.json for this older release of PEFT."),
    ] = None,
    normalize: Annotated[
        bool,
        typer.Option("--normalize", help="Scores as (reward - mean) / std, where the layout can."),
    ] = False,
    rows: options.Rows = None,
    tolerance: options.Tolerance = None,
    no_check: options.NoCheck = False,
    base: options.Base = None,
    device: Annotated[str | None, typer.Option(help="Where to compute: cpu, cuda.")] = None,
    trust_remote_code: options.TrustRemoteCode = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result on stdout.")] = False,
) -> None:
    """Write a reward model for another tool, reload it by that tool's rules, and compare scores."""
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
