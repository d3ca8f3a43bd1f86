"""A real server on loopback: uvicorn in a thread, for tests that talk to it over HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from plaudit.serving.app import build_app
from plaudit.serving.engine import Engine
from plaudit.serving.served_model import ServedModel, open_served
from plaudit.serving.server import configure
from plaudit.serving.settings import ModelSource, ServerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server that answers at ``url``."""

    url: str
    port: int
    engine: Engine

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=60, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=60, **options)

    @property
    def model(self) -> ServedModel:
        return self.engine.models[0]


@contextmanager
def running(*folders: Path, token: str | None = None, **settings: Any) -> Iterator[Running]:
    """Serve the folders under their own names until the block ends."""
    sources = tuple(ModelSource(name=folder.name, path=str(folder)) for folder in folders)
    chosen = replace(ServerSettings(models=sources, port=0), **settings)
    engine = Engine(chosen, [open_served(source, chosen) for source in sources])
    app = build_app(engine, token=token)
    server = uvicorn.Server(configure(app, chosen))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Running(url=f"http://127.0.0.1:{port}", port=port, engine=engine)
    finally:
        server.should_exit = True
        thread.join(timeout=30)
