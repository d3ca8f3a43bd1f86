"""The same loss as TRL and OpenRLHF on the same rewards."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from plaudit.losses.loss import Loss
from plaudit.recipe.schema import LossSection
from tests.losses.test_objectives import tree

pytestmark = pytest.mark.heavy

OPENRLHF = Path(__file__).parents[1] / "fixtures" / "openrlhf_losses" / "losses.json"


def mean_loss(
    chosen: Sequence[float],
    rejected: Sequence[float],
    margin: Sequence[float] | None,
    **options: Any,
) -> float:
    """The loss of an optimizer step of these pairs."""
    trees = [tree(1, 0, margin=m) for m in margin or [0.0] * len(chosen)]
    loss = Loss(options=LossSection(**options))
    scores_R = torch.tensor([chosen, rejected]).T.flatten()
    summed = loss(scores_R, loss.labels(trees, torch.device("cpu")), torch.zeros(0))
    return float(summed.total) / summed.count


@pytest.mark.parametrize("centering", [None, 0.01, 0.5])
@pytest.mark.parametrize("with_margin", [False, True])
def test_bradley_terry_is_trls(centering: float | None, with_margin: bool) -> None:
    """The ``compute_loss`` of its ``RewardTrainer``, whose model returns rewards drawn here."""
    from trl import RewardTrainer

    generator = torch.Generator().manual_seed(5)
    chosen, rejected = (3 * torch.randn(2, 64, generator=generator)).unbind()
    margin = 2 * torch.rand(64, generator=generator)
    trainer: Any = object.__new__(RewardTrainer)
    trainer.model = SimpleNamespace(training=False)
    trainer.args = SimpleNamespace(center_rewards_coefficient=centering)
    trainer.accelerator = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer._metrics = defaultdict(lambda: defaultdict(list))
    trainer._total_train_tokens = 0
    # Its collator puts all chosen responses before all rejected ones.
    logits = torch.cat([chosen, rejected])[:, None]
    inputs = {"margin": margin} if with_margin else {}
    expected = trainer.compute_loss(lambda **_: SimpleNamespace(logits=logits), inputs)
    found = mean_loss(
        chosen.tolist(),
        rejected.tolist(),
        margin.tolist() if with_margin else None,
        centering=centering or 0.0,
    )
    assert found == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "with_margin", "options"),
    [
        ("PairWiseLoss", False, {}),
        ("PairWiseLoss with margin", True, {}),
        (
            *("DPOLoss with beta 0.5 and label_smoothing 0.2", False),
            {"temperature": 2.0, "label_smoothing": 0.2},
        ),
    ],
)
@pytest.mark.parametrize("kind", ["bradley_terry", "all_pairs"])
def test_pairwise_losses_are_openrlhfs(
    kind: str, name: str, with_margin: bool, options: dict[str, Any]
) -> None:
    record = json.loads(OPENRLHF.read_text())
    margin = record["margin"] if with_margin else None
    found = mean_loss(record["chosen"], record["rejected"], margin, kind=kind, **options)
    assert found == pytest.approx(record[name], abs=1e-6)
