"""Measure the embedded base: what it knows of held-out documentation before any training.

    python scripts/measure_embedded_base.py [--base DIR] [--pairs N] [--log LOG] [--docs DIR]

Two numbers a language model can be asked for: its loss on held-out answers, and how often it finds
the right answer of a held-out pair likelier (mean log-probability per token, end token included)
than its perturbation, by perturbation. Writes ``embedded-base.json`` and, given the log of the
pretraining, keeps the log and draws its loss curve.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from plaudit.data.sources.documentation import MIX, build_pairs
from plaudit.embedded import base_path
from plaudit.evaluation.metrics.pairwise import wilson
from plaudit.storage.atomic import write_json
from plaudit.types import FloatArray

DOCS = Path(__file__).resolve().parents[1] / "docs" / "concepts"
SEED = 42


def main() -> None:
    """Measure, print and write the facts."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--base", type=Path, default=base_path())
    parser.add_argument("--pairs", type=int, default=5000)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--docs", type=Path, default=DOCS)
    arguments = parser.parse_args()
    facts = measure(arguments.base, arguments.pairs)
    if arguments.log is not None:
        log = read_log(arguments.log)
        facts["pretraining"] = summary(log)
        shutil.copy(arguments.log, arguments.docs / "embedded-base-log.jsonl")
        draw(log, arguments.docs / "embedded-base-loss.png")
    write_json(arguments.docs / "embedded-base.json", facts)
    print(json.dumps(facts, indent=2))


def measure(base: Path, count: int) -> dict[str, Any]:
    """Held-out loss in nats a token, and likelihood accuracy over all operators and by operator."""
    # The head of zeros is no part of a language model, and transformers would say so.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    rows = build_pairs(count, SEED, "heldout")
    texts = [
        str(tokenizer.apply_chat_template([*row["prompt"], *row[side]], tokenize=False))
        for side in ("chosen", "rejected")
        for row in rows
    ]
    sum_R, tokens_R = log_probabilities(model, tokenizer, texts)
    mean_R = sum_R / tokens_R
    delta_P = mean_R[:count] - mean_R[count:]
    operator_P = np.asarray([row["subset"] for row in rows])
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "heldout_loss": float(-sum_R[:count].sum() / tokens_R[:count].sum()),
        "likelihood_accuracy": {
            "all": shown(delta_P),
            **{name: shown(delta_P[operator_P == name]) for name in MIX},
        },
    }


def shown(delta_P: FloatArray) -> dict[str, Any]:
    """Accuracy with its 95% interval and the number of pairs."""
    interval = wilson(int((delta_P > 0).sum()), len(delta_P))
    assert interval is not None
    return {
        "accuracy": float(np.mean(delta_P > 0)),
        "accuracy_ci95": [round(float(bound), 4) for bound in interval],
        "pairs": len(delta_P),
    }


@torch.no_grad()
def log_probabilities(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> tuple[FloatArray, FloatArray]:
    """Summed log-probability of each text's answer, and the number of its tokens."""
    header = tokenizer.convert_tokens_to_ids("<|assistant|>")
    ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    sum_R, tokens_R = np.zeros(len(ids)), np.zeros(len(ids))
    # Threads on products this small only wait for each other, minutes of it on a busy machine.
    torch.set_num_threads(1)
    # One row at a time: rows are short, so padding would cost more than batching gains.
    for at, sequence in enumerate(ids):
        ids_T = torch.tensor(sequence)
        start = sequence.index(header) + 1
        logits = model(input_ids=ids_T[None], use_cache=False).logits[0, start - 1 : -1]
        loss = nn.functional.cross_entropy(logits, ids_T[start:], reduction="sum")
        sum_R[at], tokens_R[at] = -float(loss), len(sequence) - start
    return sum_R, tokens_R


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a pretraining log."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def summary(log: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Where the pretraining ended and where its validation loss was lowest."""
    best = min(
        (line for line in log if "validation_loss" in line),
        key=lambda line: float(line["validation_loss"]),
    )
    last = log[-1]
    return {
        "steps": last["step"],
        "tokens": last["tokens"],
        "seconds": last["seconds"],
        "best_step": best["step"],
        "best_validation_loss": best["validation_loss"],
    }


def draw(log: Sequence[dict[str, Any]], path: Path) -> None:
    """Training and validation loss over the tokens read."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    steps = [line["tokens"] / 1e6 for line in log]
    loss = np.asarray([line["training_loss"] for line in log])
    axes.plot(steps, loss, color="0.8", linewidth=0.8, label="training, one batch")
    window = min(15, len(loss))
    smooth = np.convolve(loss, np.ones(window) / window, mode="valid")
    axes.plot(steps[window - 1 :], smooth, color="0.45", label=f"training, mean of {window} lines")
    seen = [line for line in log if "validation_loss" in line]
    axes.plot(
        [line["tokens"] / 1e6 for line in seen],
        [line["validation_loss"] for line in seen],
        marker="o",
        markersize=3,
        label="validation, answers alone",
    )
    axes.set(xlabel="tokens read, millions", ylabel="loss, nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
