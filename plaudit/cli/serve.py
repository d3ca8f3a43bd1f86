"""``plaudit serve MODEL``: rewards over HTTP, in the protocols that RLHF tools speak."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Annotated

import typer

from plaudit.cli import options
from plaudit.cli.help import MODEL, SERVER
from plaudit.errors import PlauditError


def serve(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL", help="PATH or NAME=PATH; the first is the default."),
    ],
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", rich_help_panel=SERVER, help="Address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, max=65535, rich_help_panel=SERVER, help="Port; 0 picks a free one."
        ),
    ] = 8000,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=SERVER,
            help="Host name to accept without a token, besides this machine's own.",
        ),
    ] = None,
    token_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=SERVER,
            help="File with the bearer token that requests must carry.",
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            rich_help_panel=SERVER,
            help="Number of processes, one per GPU, each with a copy of the model.",
        ),
    ] = 1,
    max_batch_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, rich_help_panel=SERVER, help="Maximum number of tokens per batch."
        ),
    ] = None,
    max_requests: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            rich_help_panel=SERVER,
            help="Maximum number of concurrent requests; others get status 503.",
        ),
    ] = 1024,
    request_timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0.001, rich_help_panel=SERVER, help="Timeout of a request."
        ),
    ] = 180.0,
    cached_scores: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, rich_help_panel=SERVER, help="Number of recent rewards to cache."
        ),
    ] = 1 << 16,
    prefix_cache_mib: Annotated[
        int,
        typer.Option(
            metavar="MIB",
            min=0,
            rich_help_panel=SERVER,
            help="Size of each model's prefix cache (keys and values) in MiB.",
        ),
    ] = 512,
    complete_texts: Annotated[
        bool,
        typer.Option(
            "--complete-texts",
            rich_help_panel=MODEL,
            help="Add the end of the chat template to texts that lack it.",
        ),
    ] = False,
    base: options.Base = None,
    device: options.Device = None,
    dtype: options.Precision = "auto",
    reward: options.Reward = "mean",
    lower_bound_k: options.LowerBoundK = 1.0,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Serve rewards over HTTP.

    Examples:
      plaudit serve runs/first
      plaudit serve helpful=runs/first honest=runs/second --port 9000
    """
    check_extra()
    from plaudit.cli.printing import print_lines, starting
    from plaudit.serving.settings import ServerSettings, host_names, model_sources

    settings = ServerSettings(
        models=model_sources(models),
        host=host,
        port=port,
        allowed_hosts=host_names(allowed_host or []),
        token_file=token_file,
        workers=workers,
        max_batch_tokens=max_batch_tokens,
        max_requests=max_requests,
        request_timeout=request_timeout,
        cached_scores=cached_scores,
        prefix_cache_bytes=prefix_cache_mib << 20,
        complete_texts=complete_texts,
        base=base,
        device=device,
        dtype=dtype,
        reward=reward,
        lower_bound_k=lower_bound_k,
        trust_remote_code=trust_remote_code,
    )
    with starting() as console:
        from plaudit.serving.server import bind, open_engine, read_token, serve, serve_workers

        token = read_token(settings)
    guard = "its token" if token else "no token"

    def say(what: str, address: str) -> None:
        print_lines(console, [f"{what} at {address} ({guard}); stop with Ctrl-C."])

    if workers > 1:
        names = ", ".join(source.name for source in settings.models)
        serve_workers(settings, partial(say, f"Starting {workers} workers for {names}"))
        return
    with bind(settings) as listening:
        with console.status("loading the models"):
            engine = open_engine(settings)
        names = ", ".join(served.name for served in engine.models)
        serve(settings, engine, listening, on_listening=partial(say, f"Serving {names}"))


def check_extra() -> None:
    """The HTTP libraries come with an extra.

    Raises:
        PlauditError: one is not installed.
    """
    missing = [
        name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None
    ]
    if missing:
        raise PlauditError(
            f"plaudit serve requires {', '.join(missing)}; install the extra: pip install "
            "'plaudit[serve]'."
        )
