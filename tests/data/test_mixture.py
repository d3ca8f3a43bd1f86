"""A mixture end to end: every source has its slice, its line in the card and its count."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from plaudit.training.run import train
from tests.conftest import pair_rows, recipe_of, write_jsonl

pytestmark = pytest.mark.heavy


def test_sources_of_a_mixture_are_named_everywhere(tiny_base: Path, tmp_path: Path) -> None:
    forum = [row | {"source": "thread"} for row in pair_rows(20, seed=1)]
    mixture = [
        {"path": str(write_jsonl(tmp_path / "forum.jsonl", forum)), "num_samples": 30},
        {
            "path": str(write_jsonl(tmp_path / "staff.jsonl", pair_rows(40, seed=2))),
            "num_samples": 25,
        },
    ]
    recipe = recipe_of(tiny_base, tmp_path, num_train_epochs=1)
    recipe["data"] = {"train": mixture, "eval_rows": 16}
    recipe["evaluate"] = {"perturbation_tests": 0, "baselines": []}
    recipe["report"] = {"plots": False}
    screen = io.StringIO()
    run = train(recipe, tmp_path / "run", console=Console(file=screen, width=200))
    said = screen.getvalue()
    assert "forum 30 (55%) from 20 distinct rows; staff 25 (45%) from 25 distinct rows" in said
    data, evaluation = run.metrics.data, run.metrics.eval
    assert [(s.name, s.used, s.sampled) for s in data.sources] == [
        ("forum", 20, 30),
        ("staff", 25, 25),
    ]
    assert data.dropped == {"not_sampled": 15}
    assert evaluation.pairs == 16
    slices = {(entry.column, entry.value): entry.pairs for entry in evaluation.slices}
    assert slices["source", "thread"] == slices["mixed_from", "forum"] > 0
    assert slices["source", "staff"] > 0
    card = (run.folder / "README.md").read_text("utf-8")
    assert "| forum |" in card
    assert "20, sampled to 30 comparisons" in card
    assert json.loads((run.folder / "metrics.json").read_text())["data"]["sources"][1]["rows"] == 40
