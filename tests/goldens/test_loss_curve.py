"""The losses of a short run, kept: a change of the training arithmetic shows here first."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.heavy

GOLDEN = Path(__file__).parent / "loss_curve.json"


def test_the_losses_of_a_short_run_are_what_they_were(finished_run: Path) -> None:
    """To 1e-4: other processors round sums in another order."""
    metrics = json.loads((finished_run / "metrics.json").read_text())
    found = {
        "training": [entry["loss"] for entry in metrics["training_curve"]],
        "validation": [entry["validation_loss"] for entry in metrics["eval"]["history"]],
    }
    if os.environ.get("PLAUDIT_UPDATE_GOLDENS"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    expected = json.loads(GOLDEN.read_text())
    assert found["training"] == pytest.approx(expected["training"], abs=1e-4)
    assert found["validation"] == pytest.approx(expected["validation"], abs=1e-4)
    assert found["training"][-1] < found["training"][0] - 0.01
