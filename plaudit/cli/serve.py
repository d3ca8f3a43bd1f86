"""``plaudit serve MODEL``: rewards over HTTP, in the protocols that RLHF tools speak."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Annotated

import typer

from plaudit.cli import options
from plaudit.errors import PlauditError


def serve(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="PATH or NAME=PATH; the first is the default."),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="A name to answer to without a token, beside this machine's own; repeatable."
        ),
    ] = None,
    token_file: Annotated[
        str | None,
        typer.Option(help="File with the bearer token that requests must carry."),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes, one a GPU, each with its own copy.")
    ] = 1,
    max_batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens computed at once.")
    ] = None,
    max_requests: Annotated[
        int, typer.Option(min=1, help="Requests accepted at a time; others get 503.")
    ] = 1024,
    request_timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds a request may take.")
    ] = 180.0,
    cached_scores: Annotated[
        int, typer.Option(min=0, help="Rewards of recent conversations to keep.")
    ] = 1 << 16,
    prefix_cache_mib: Annotated[
        int,
        typer.Option(min=0, help="Size of each model's prefix cache (keys and values) in MiB."),
    ] = 512,
    complete_texts: Annotated[
        bool,
        typer.Option("--complete-texts", help="Add the template's last characters to texts."),
    ] = False,
    base: options.Base = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …")] = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Answer HTTP requests for rewards until stopped."""
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
            f"plaudit serve needs {', '.join(missing)}; install its extra: pip install "
            "'plaudit[serve]'."
        )
