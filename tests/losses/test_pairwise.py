"""Pairs inside a comparison, and the loss over them, against formulas written out here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.losses.labels import Labels, ordered_pairs
from plaudit.losses.loss import Loss
from plaudit.recipe.schema import LossSection
from plaudit.types import TokenTree

pytestmark = pytest.mark.heavy

CPU = torch.device("cpu")
LOSS = Loss(options=LossSection())


def labels_of(trees: list[TokenTree]) -> Labels:
    return LOSS.labels(trees, CPU)


def bradley_terry(scores_R: torch.Tensor, labels: Labels) -> torch.Tensor:
    return LOSS(scores_R, labels, torch.zeros(0)).total


def tree(*grades: float, margin: float = 0.0, weight: float = 1.0) -> TokenTree:
    return TokenTree(
        index=0,
        prefix=np.zeros(0, np.int32),
        branches=tuple(np.zeros(1, np.int32) for _ in grades),
        grades=grades,
        margin=margin,
        weight=weight,
    )


def by_hand(scores: list[float], trees: list[TokenTree]) -> float:
    """Minus the log of the chance of each known order, in Python's own floats."""
    total, row = 0.0, 0
    for item in trees:
        k = len(item.grades)
        order = [(i, j) for i in range(k) for j in range(k) if item.grades[i] > item.grades[j]]
        for i, j in order:
            delta = scores[row + i] - scores[row + j] - item.margin
            softplus = max(-delta, 0.0) + math.log1p(math.exp(-abs(delta)))
            total += item.weight / len(order) * softplus
        row += k
    return total


comparisons = st.lists(
    st.builds(
        lambda grades, margin, weight: tree(*grades, margin=margin, weight=weight),
        st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=4),
        st.floats(-3, 3, width=32),
        st.floats(0.125, 4, width=32),
    ),
    min_size=1,
    max_size=5,
)


@settings(deadline=None)
@given(comparisons, st.data())
def test_the_loss_is_the_formula(trees: list[TokenTree], data: st.DataObject) -> None:
    count = sum(len(item.grades) for item in trees)
    scores = data.draw(st.lists(st.floats(-40, 40, width=32), min_size=count, max_size=count))
    found = bradley_terry(torch.tensor(scores), labels_of(trees))
    assert float(found) == pytest.approx(by_hand(scores, trees), rel=1e-4, abs=1e-5)


def test_margins_stay_with_their_pairs() -> None:
    """A margin of shape [P, 1] would give P times P losses, and a different sum."""
    trees = [tree(1, 0, margin=1.0), tree(1, 0, margin=-2.0), tree(1, 0)]
    labels = labels_of(trees)
    pairs = labels.pairs
    assert pairs.margin_P.shape == pairs.weight_P.shape == pairs.winner_P.shape == (3,)
    scores = [0.5, 0.0, 0.3, 0.1, -1.0, 1.0]
    found = bradley_terry(torch.tensor(scores), labels)
    assert found.shape == ()
    assert float(found) == pytest.approx(by_hand(scores, trees), rel=1e-6)


def test_pairs_of_more_than_two() -> None:
    assert ordered_pairs((2.0, 0.0, 1.0)) == [(0, 1), (0, 2), (2, 1)]
    assert ordered_pairs((1.0, 1.0, 0.0)) == [(0, 2), (1, 2)]
    assert ordered_pairs((1.0, 1.0)) == []
    assert ordered_pairs(()) == []
    pairs = labels_of([tree(0, 1), tree(2, 0, 1, weight=3.0)]).pairs
    assert pairs.winner_P.tolist() == [1, 2, 2, 4]
    assert pairs.loser_P.tolist() == [0, 3, 4, 3]
    assert pairs.weight_P.tolist() == [1, 1, 1, 1]


def test_a_comparison_counts_once_however_many_pairs_it_has() -> None:
    for grades in ((1, 0), (3, 2, 1, 0), (1, 1, 0)):
        assert float(labels_of([tree(*grades, weight=2.5)]).pairs.weight_P.sum()) == pytest.approx(
            2.5
        )
    assert LOSS.count([tree(1, 0), tree(1, 1), tree(2, 1, 0, weight=0.5)]) == 1.5
