"""``loss.consistency``: a rewritten copy of a response gets the reward of the response."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from plaudit.data.perturb.copies import REWRITES, with_copy
from plaudit.losses.loss import Loss
from plaudit.recipe.objectives import OBJECTIVES
from plaudit.recipe.schema import LossSection
from plaudit.training.run import train
from plaudit.types import Comparison, Message, TokenTree
from tests.conftest import pair_rows, recipe_of, write_jsonl

pytestmark = pytest.mark.heavy

CPU = torch.device("cpu")


def tree(grades: tuple[float, ...], copies: tuple[int, ...], weight: float = 1.0) -> TokenTree:
    return TokenTree(
        index=0,
        prefix=np.zeros(0, np.int32),
        branches=tuple(np.zeros(n + 1, np.int32) for n in range(len(grades) + len(copies))),
        grades=grades,
        copies=copies,
        weight=weight,
        rated=True,
    )


def test_the_penalty_is_the_squared_difference_to_the_original() -> None:
    trees = [
        tree((1.0, 0.0), (1,), weight=2.0),
        tree((1.0, 0.0), ()),
        tree((2.0, 1.0, 0.0), (0, 2)),
    ]
    rewards_R = torch.tensor([0.5, -0.25, 0.75, 1.0, 0.0, 0.1, 0.2, 0.3, 0.4, 0.6])
    plain, penalised = (Loss(options=LossSection(consistency=c)) for c in (0.0, 0.5))
    found = [
        float(loss(rewards_R, loss.labels(trees, CPU), torch.zeros(0)).total)
        for loss in (plain, penalised)
    ]
    by_hand = 2.0 * (-0.25 - 0.75) ** 2 + ((0.1 - 0.4) ** 2 + (0.3 - 0.6) ** 2) / 2.0
    assert found[1] - found[0] == pytest.approx(0.5 * by_hand, rel=1e-5)


@pytest.mark.parametrize("kind", sorted(OBJECTIVES))
def test_a_copy_is_in_no_other_part_of_any_objective(kind: str) -> None:
    """Without the penalty a copy costs nothing, whatever its reward."""
    loss = Loss(options=LossSection(kind=kind), levels=(0.0, 1.0))
    learned_C = torch.tensor([-0.5])
    rewards_R = torch.tensor([0.5, -0.25, 9.0])
    with_one, without = tree((1.0, 0.0), (0,)), tree((1.0, 0.0), ())
    one = loss(rewards_R, loss.labels([with_one], CPU), learned_C)
    none = loss(rewards_R[:2], loss.labels([without], CPU), learned_C)
    assert one.count == none.count
    assert float(one.total) == pytest.approx(float(none.total))


def comparison(*texts: str, number: int = 0) -> Comparison:
    return Comparison(
        id=f"row {number}",
        prompt=(Message(role="user", content="What is it?"),),
        responses=tuple((Message(role="assistant", content=text),) for text in texts),
        grades=(1.0, 0.0),
        group="g",
        source="s",
        where="file:1",
    )


def test_a_copy_says_the_same_in_other_form() -> None:
    row = comparison("It isn't here. It's \"there\". Look.", "I don't know. Really.")
    copied = with_copy(row, seed=1)
    assert copied is not None
    assert copied.perturbation in {one.name for one in REWRITES}
    assert copied.comparison.responses[:2] == row.responses
    original, copy = copied.comparison.responses[copied.origin], copied.comparison.responses[2]
    assert copy != original
    assert with_copy(row, seed=1) == copied
    different = [with_copy(replace(row, id=f"row {n}"), seed=1) for n in range(20)]
    assert len({one.origin for one in different if one is not None}) == 2


def test_where_no_rewrite_takes_hold_there_is_no_copy() -> None:
    assert with_copy(comparison("42", "7"), seed=1) is None


def test_training_comparisons_alone_have_copies(tiny_base: Path, tmp_path: Path) -> None:
    """The evaluation part of the same file is scored as it stands, and a run can be trained."""
    rows = pair_rows(24, seed=5)
    for row in rows:
        row["chosen"][0]["content"] += ". It isn't wrong."
    data = write_jsonl(tmp_path / "pairs.jsonl", rows)
    recipe = recipe_of(tiny_base, data, num_train_epochs=1)
    plain = train(recipe, tmp_path / "plain").metrics
    metrics = train(
        recipe | {"loss": {"consistency": 1.0}, "report": {"plots": False}}, tmp_path / "run"
    ).metrics
    assert metrics.eval.pairs == plain.eval.pairs
    assert metrics.data.used == plain.data.used == 24
    assert metrics.train.tokens > plain.train.tokens
    assert metrics.train.pairs == plain.train.pairs
