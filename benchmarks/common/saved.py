"""A model as plaudit saves it, without training it: one step at a learning rate of zero."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from plaudit.training.run import train


def few_pairs(count: int) -> list[dict[str, Any]]:
    """Short pairs that differ."""
    return [
        {
            "prompt": [{"role": "user", "content": f"How much is {number} and {number}?"}],
            "chosen": [{"role": "assistant", "content": f"It is {2 * number}."}],
            "rejected": [{"role": "assistant", "content": f"It is {2 * number + 1}, or not."}],
        }
        for number in range(count)
    ]


def write_pairs(path: Path, count: int) -> Path:
    """:func:`few_pairs` as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row) + "\n" for row in few_pairs(count)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def saved_model(base: Path, out: Path, *, lora: dict[str, Any] | None = None) -> Path:
    """The base as a run folder that plaudit loads, its weights unchanged; plain transformers reads
    it too where ``lora`` is None.
    """
    data = write_pairs(out.with_name(f"{out.name}-pairs.jsonl"), 8)
    recipe = {
        "model": {"base": str(base)},
        "lora": lora,
        "data": {"train": str(data), "eval_fraction": 0.5},
        "tokens": {"max_length": 4096},
        "train": {"learning_rate": 0.0, "max_steps": 1, "per_device_train_batch_size": 1},
        "evaluate": {"calibrate": False, "baselines": []},
        "report": {"html": False, "plots": False},
    }
    return train(recipe, out).folder
