"""Runs with the language-model loss keep what the base knows of the better responses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from plaudit.errors import ModelError, RecipeError
from plaudit.model.language import LanguageHead, next_tokens_of
from plaudit.model.module import DecoderRewardModule
from plaudit.reward_model import load
from plaudit.training.run import train
from plaudit.types import TokenTree
from tests.conftest import pair_rows, recipe_of, write_jsonl
from tests.models import build_base

pytestmark = pytest.mark.heavy


def recipe(base: Path, data: Path, coefficient: float) -> dict[str, Any]:
    found = recipe_of(base, data, num_train_epochs=4, learning_rate=1e-2)
    found["loss"] = {"language_model": coefficient}
    found["evaluate"] = {"perturbation_tests": 0, "baselines": []}
    found["report"] = {"html": False, "plots": False}
    return found


def loss_of(folder: Path) -> float:
    """Of the better responses of other rows, a mean over them."""
    model = load(folder)
    assert isinstance(model.module, DecoderRewardModule)
    model.module.language_head = LanguageHead(None, None)
    rows = pair_rows(20, seed=5)
    found = model.encode(
        [model.comparison(r["prompt"], [r["chosen"], r["rejected"]]) for r in rows]
    )
    trees = [
        TokenTree(index=0, prefix=t.prefix, branches=t.branches, grades=(1.0, 0.0))
        for t in found
        if isinstance(t, TokenTree)
    ]
    batch = model.batcher.collate(trees)
    with torch.no_grad():
        _, loss = model.module(batch, next_tokens=next_tokens_of(trees, batch, torch.device("cpu")))
    return float(loss) / len(trees)


def test_the_base_goes_on_as_a_language_model(tmp_path: Path) -> None:
    base = build_base(tmp_path / "base", tie_word_embeddings=True)
    data = write_jsonl(tmp_path / "pairs.jsonl", pair_rows(60))
    for name, coefficient in (("plain", 0.0), ("kept", 1.0)):
        train(recipe(base, data, coefficient), tmp_path / name)
    assert loss_of(tmp_path / "kept") < loss_of(tmp_path / "plain") - 0.5
    # The head is the base's, and not in the files.
    assert not list(tmp_path.glob("kept/*lm_head*"))


def test_a_base_that_predicts_no_token_is_refused(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", pair_rows(30))
    encoder = build_base(tmp_path / "encoder", "bert")
    with pytest.raises(RecipeError, match="is an encoder, which predicts no next token"):
        train(recipe(encoder, data, 0.1), tmp_path / "run")
    untied = build_base(tmp_path / "untied", tie_word_embeddings=False)
    with pytest.raises(ModelError, match="so it is no language model"):
        train(recipe(untied, data, 0.1), tmp_path / "run")
    assert not (tmp_path / "run").exists()
