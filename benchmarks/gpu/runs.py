"""Whole runs on the device: within a share of its memory, saved and resumed, and under torchrun.

They train small models on a small corpus, through ``plaudit.train`` and what it writes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

import plaudit
from benchmarks.common.machine import REPOSITORY
from benchmarks.common.models import build_base
from benchmarks.common.saved import few_pairs, write_pairs
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.record import Part
from plaudit.embedded import NAME
from plaudit.errors import InterruptedRunError

PAIRS = 96
NOISE = {"float32": 1e-4, "bfloat16": 5e-2}
"""Between a score and the same one computed in another batch, by the precision of the body."""


def recipe_of(
    data: Path, *, base: str = NAME, lora: bool = True, **train: Any
) -> dict[str, Any]:
    """A short run; evaluation is on a share of the same rows, without perturbation tests."""
    return {
        "model": {"base": base},
        "lora": {"r": 8, "target_modules": "all-linear"} if lora else None,
        "data": {"train": str(data), "eval_fraction": 0.25},
        "tokens": {"max_length": 512},
        "train": {
            "max_steps": 12,
            "per_device_train_batch_size": 8,
            "logging_steps": 2,
            "eval_strategy": "no",
            "save_steps": 4,
            **train,
        },
        "evaluate": {"calibrate": False, "baselines": [], "perturbations": []},
        "report": {"html": False, "plots": False},
    }
