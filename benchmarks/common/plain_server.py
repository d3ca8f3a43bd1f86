"""A reward server as one writes it in an afternoon: every response encoded and computed alone.

    python -m benchmarks.common.plain_server FOLDER

It takes plaudit's ``/v1/rewards`` with rendered texts (``prompt`` and ``responses``), one request
at a time. uvicorn, FastAPI and the model are the same as plaudit's; what differs is the scoring.
"""

from __future__ import annotations

import socket
import sys
import threading
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def build(folder: str) -> FastAPI:
    """The application around a whole classifier on disk."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32
    ).eval()
    lock = threading.Lock()
    app = FastAPI()

    @app.post("/v1/rewards")
    def rewards(body: dict[str, Any]) -> dict[str, list[float]]:
        found = []
        with lock, torch.inference_mode():
            for response in body["responses"]:
                messages = [
                    {"role": "user", "content": body["prompt"]},
                    {"role": "assistant", "content": response},
                ]
                text = tokenizer.apply_chat_template(messages, tokenize=False)
                ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
                found.append(float(network(input_ids=ids, use_cache=False).logits[0, 0]))
        return {"rewards": found}

    return app


if __name__ == "__main__":
    app = build(sys.argv[1])
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", file=sys.stderr, flush=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
    server.run(sockets=[listening])
