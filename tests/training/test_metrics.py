"""What a run's metrics say of its objective, and files that are older than objectives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plaudit.evaluation.schema import read_metrics
from plaudit.recipe.objectives import OBJECTIVES
from plaudit.recipe.schema import LossSection
from plaudit.training.metrics import objective_of
from tests.objectives import model_metadata

GOLDEN = Path(__file__).parents[1] / "goldens" / "run"


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_an_objective_is_recorded_as_its_table_has_it(kind: str) -> None:
    row, options = OBJECTIVES[kind], LossSection.model_validate({"kind": kind})
    found = objective_of(options, model_metadata(kind, learned=(0.0,) if row.learned else ()))
    assert (found.family, found.formula, found.where) == (row.family, row.formula, row.where)
    assert (found.source, dict(found.options)) == (row.source, {})
    assert list(found.learned) == ([row.learned] if row.learned else [])


def test_options_learned_parameters_and_the_offset_are_recorded() -> None:
    options = LossSection(kind="davidson", label_smoothing=0.1, margin="ignore")
    found = objective_of(options, model_metadata("davidson", learned=(0.0,), offset=2.5))
    assert found.options == {"margin": "ignore", "label_smoothing": 0.1}
    assert found.learned == {"nu": (1.0,)}
    assert found.offset == 2.5


def test_a_fixed_tie_parameter_is_an_option_and_not_learned() -> None:
    options = LossSection(kind="rao_kupper", tie_parameter=2.0)
    found = objective_of(options, model_metadata("rao_kupper", learned=(-0.4,)))
    assert found.options == {"tie_parameter": 2.0}
    assert found.learned == {}
    residual = LossSection(kind="rao_kupper", tie_parameter=2.0, length="residual")
    found = objective_of(residual, model_metadata("rao_kupper", learned=(-0.4, 0.5)))
    assert found.learned == {"length_weight": (0.5,)}


def test_metrics_without_an_objective_can_be_read(tmp_path: Path) -> None:
    metrics = json.loads((GOLDEN / "metrics.json").read_text(encoding="utf-8"))
    metrics["run"].pop("objective", None)
    for role in ("eval", "test"):
        for key in ("ratings", "tied"):
            metrics[role].pop(key, None)
        metrics[role]["curves"].pop("ratings", None)
    (tmp_path / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    assert read_metrics(tmp_path).run.objective is None
