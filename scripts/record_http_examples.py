"""Record the server's response to the example request of every protocol.

    python scripts/record_http_examples.py runs/quickstart

Writes ``scripts/http_examples.json``, which ``scripts/generate_reference.py`` shows beside
the requests. The rewards are those of the model that is named; a test checks the shapes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from plaudit.serving.app import build_app
from plaudit.serving.engine import Engine
from plaudit.serving.protocols.table import PROTOCOLS
from plaudit.serving.served_model import open_served
from plaudit.serving.settings import ModelSource, ServerSettings

TARGET = Path(__file__).resolve().parent / "http_examples.json"
OTHERS = ("/v1/models",)


def rounded(value: Any) -> Any:
    """The value with numbers of six decimals: the page shows shapes, not bits."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return round(value, 6) if isinstance(value, float) else value


def record(model: Path) -> dict[str, Any]:
    """The response to each protocol's example, and to each other endpoint."""
    source = ModelSource(name="rm", path=str(model))
    settings = ServerSettings(models=(source,), port=0)
    engine = Engine(settings, [open_served(source, settings)])
    responses: dict[str, Any] = {}
    with TestClient(build_app(engine), base_url="http://localhost") as client:
        for protocol in PROTOCOLS.values():
            reply = client.request(
                protocol.methods[0], protocol.paths[0], json=dict(protocol.example)
            )
            reply.raise_for_status()
            responses[protocol.name] = rounded(reply.json())
        for path in OTHERS:
            reply = client.get(path)
            reply.raise_for_status()
            responses[f"GET {path}"] = rounded(reply.json())
    return responses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="folder of a trained reward model")
    text = json.dumps(record(parser.parse_args().model), indent=1, ensure_ascii=False)
    TARGET.write_text(text + "\n", encoding="utf-8")
    print(f"wrote {TARGET}")
