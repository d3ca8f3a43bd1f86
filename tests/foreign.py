"""Reward models of other tools in ``tests/fixtures``, and the scores these gave."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import plaudit
from plaudit.reward_model import RewardModel
from plaudit.tokens.encode import up_to_scored_token
from plaudit.types import IntArray, TokenTree
from tests.models import tiny_classifier, tiny_tokenizer

FIXTURES = Path(__file__).parent / "fixtures"
LLAMA_FACTORY = FIXTURES / "llama_factory"
BASE = LLAMA_FACTORY / "base"
TRL = FIXTURES / "trl"
OLD_PEFT = FIXTURES / "peft_0_11"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def opened(folder: Path, *, base: Path | None = BASE, **choices: Any) -> RewardModel:
    return plaudit.load(folder, base=None if base is None else str(base), **choices)


def tree(*sequences: IntArray) -> TokenTree:
    return TokenTree(index=0, prefix=np.zeros(0, np.int32), branches=sequences)


def scores_of_ids(model: RewardModel, sequences: Iterable[Sequence[int]]) -> list[float]:
    """Rewards of whole conversations given as ids, read where the model reads."""
    cut = [
        up_to_scored_token(model.metadata.scored_token, np.asarray(ids, np.int32))
        for ids in sequences
    ]
    return [float(reward) for (reward,) in model.score_trees([tree(ids) for ids in cut])]


def complete(name: str, folder: Path) -> Path:
    """An adapter of ``peft_0_11`` with the tokenizer that was saved beside it."""
    shutil.copytree(OLD_PEFT / name, folder)
    for file in ("tokenizer.json", "chat_template.jinja", "tokenizer_config.json"):
        if not (folder / file).exists():
            shutil.copy(BASE / file, folder / file)
    return folder


def put_foreign_models(folder: Path) -> None:
    """The models that the pages on other tools name, each where its pages expect it."""
    (folder / "llama-factory-rm").symlink_to(LLAMA_FACTORY / "adapter")
    (folder / "trl-rm").symlink_to(TRL / "adapter")
    for name in ("my-llama", "tiny-llama"):
        # The adapters' own settings name their base tiny-llama.
        (folder / name).symlink_to(BASE)
    build_openrlhf(folder / "openrlhf-rm")
    put_llama_factory_run(folder)


def put_llama_factory_run(folder: Path) -> None:
    """A reward YAML of LLaMA-Factory with its data; a dozen pairs of a recorded run."""
    settings = yaml.safe_load((LLAMA_FACTORY / "run" / "reward.yaml").read_text("utf-8"))
    short = {"max_samples": 12, "num_train_epochs": 1, "dataset_dir": "data"}
    settings |= {"model_name_or_path": "my-llama", "output_dir": "saves/rm", **short}
    (folder / "reward.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    (folder / "data").mkdir()
    for name in ("dataset_info.json", "dpo_en_demo_90.json"):
        (folder / "data" / name).symlink_to(LLAMA_FACTORY / "run" / name)


def build_openrlhf(folder: Path) -> Path:
    """A tiny model with the keys that OpenRLHF writes into config.json."""
    tiny_classifier().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(str(folder))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    added = {"value_head_prefix": "score", "mean": -0.25, "std": 0.5}
    (folder / "config.json").write_text(json.dumps({**config, **added}), encoding="utf-8")
    return folder
