"""Outputs, spread and lower bound beside the reward: what they are, and which models have them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from plaudit.errors import DataError, ModelError
from plaudit.interop.trl.reward_function import reward_function
from plaudit.reward_model import LoadOptions, RewardModel, load
from plaudit.types import RewardDetails
from tests.models import FIVE_HEADS, THREE, saved_with_outputs

pytestmark = pytest.mark.heavy

PROMPT, RESPONSES = "what is it?", ["it is forty two", "no idea at all", "a brown fox"]


@pytest.fixture(scope="module")
def attributes(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_with_outputs(tmp_path_factory.mktemp("attributes"), tiny_base, lora=True)


@pytest.fixture(scope="module")
def ensemble(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ensemble")
    return saved_with_outputs(folder, tiny_base, lora=True, outputs=FIVE_HEADS)


def table(details: list[RewardDetails]) -> np.ndarray:
    """``outputs_KO`` of the details."""
    return np.array([list((one.outputs or {}).values()) for one in details])


def test_outputs_come_by_name_and_make_the_reward(attributes: Path) -> None:
    model = load(attributes)
    details = model.score(PROMPT, RESPONSES, outputs=True)
    assert [list(one.outputs or ()) for one in details] == [["helpful", "true", "short"]] * 3
    assert np.std(table(details), axis=0).min() > 1e-3
    rewards = [one.reward for one in details]
    np.testing.assert_allclose(table(details) @ THREE.weights, rewards, rtol=1e-12)
    assert rewards == model.score(PROMPT, RESPONSES)
    assert {(one.mean, one.spread, one.lower_bound) for one in details} == {(None, None, None)}


def test_an_ensemble_gives_mean_spread_and_lower_bound(ensemble: Path) -> None:
    model = load(ensemble, lower_bound_k=2)
    details = model.score(PROMPT, RESPONSES, outputs=True, uncertainty=True)
    outputs_KO = table(details)
    spreads = outputs_KO.std(axis=1, ddof=1)
    assert spreads.min() > 1e-3
    np.testing.assert_allclose([one.mean for one in details], outputs_KO.mean(axis=1))
    np.testing.assert_allclose([one.spread for one in details], spreads)
    bounds = outputs_KO.mean(axis=1) - 2 * spreads
    np.testing.assert_allclose([one.lower_bound for one in details], bounds)
    assert [one.reward for one in details] == [one.mean for one in details]
    alone = model.score(PROMPT, RESPONSES, uncertainty=True)
    assert alone == [replace(one, outputs=None) for one in details]


def test_the_lower_bound_is_the_reward_wherever_the_model_is_used(ensemble: Path) -> None:
    mean, bound = load(ensemble), load(ensemble, reward="lower_bound", lower_bound_k=3)
    assert repr(bound).endswith("layout='packed', reward='lower_bound', lower_bound_k=3)")
    spreads = [one.spread for one in mean.score(PROMPT, RESPONSES, uncertainty=True)]
    rewards = bound.score(PROMPT, RESPONSES)
    expected = np.array(mean.score(PROMPT, RESPONSES)) - 3 * np.array(spreads, float)
    np.testing.assert_allclose(rewards, expected, rtol=1e-12)
    details = bound.score(PROMPT, RESPONSES, uncertainty=True)
    assert [one.lower_bound for one in details] == rewards == [one.reward for one in details]
    assert [one.mean for one in details] == mean.score(PROMPT, RESPONSES)
    assert bound.best_of(PROMPT, RESPONSES).rewards == tuple(rewards)
    probability = bound.prefer(PROMPT, RESPONSES[0], RESPONSES[1])
    assert np.log(probability / (1 - probability)) == pytest.approx(rewards[0] - rewards[1], 1e-5)
    along = bound.token_rewards(PROMPT, RESPONSES[0])
    assert along[-1].reward == pytest.approx(rewards[0], abs=1e-5)
    scored = reward_function(bound)([PROMPT] * 3, RESPONSES)
    np.testing.assert_allclose(np.array(scored, float), rewards, atol=1e-5)


def test_k_of_zero_gives_the_mean(ensemble: Path) -> None:
    bound = load(ensemble, reward="lower_bound", lower_bound_k=0)
    assert bound.score(PROMPT, RESPONSES) == load(ensemble).score(PROMPT, RESPONSES)


@pytest.mark.parametrize("name", ["attributes", "ensemble"])
def test_many_rows_have_what_one_row_has(name: str, request: pytest.FixtureRequest) -> None:
    model = load(request.getfixturevalue(name))
    uncertain = name == "ensemble"
    rows = [(PROMPT, RESPONSES), ("fox " * 4000, ["over"]), ("the fox", ["jumps"])]
    if uncertain:
        first, too_long, last = model.score_many(rows, outputs=True, uncertainty=True)
        alone = model.score(PROMPT, RESPONSES, outputs=True, uncertainty=True)
    else:
        first, too_long, last = model.score_many(rows, outputs=True)
        alone = model.score(PROMPT, RESPONSES, outputs=True)
    assert isinstance(too_long, DataError)
    assert isinstance(first, list)
    assert isinstance(last, list)
    assert len(last) == 1
    np.testing.assert_allclose(table(first), table(alone), atol=1e-5)
    assert [one.spread is not None for one in first] == [uncertain] * 3


@pytest.mark.parametrize("ask", ["score", "score_many"])
def test_what_a_model_does_not_have_is_an_error(
    finished_run: Path, attributes: Path, ask: str
) -> None:
    def asked(model: RewardModel, **details: bool) -> object:
        arguments = (PROMPT, RESPONSES) if ask == "score" else ([(PROMPT, RESPONSES)],)
        return getattr(model, ask)(*arguments, **details)

    plain = load(finished_run)
    with pytest.raises(ModelError, match=r"has one output; train a model with loss\.outputs or"):
        asked(plain, outputs=True)
    with pytest.raises(ModelError, match=r"one output and no ensemble of heads; train .*\.heads"):
        asked(plain, uncertainty=True)
    with pytest.raises(ModelError, match="the outputs helpful, true, short and no ensemble"):
        asked(load(attributes), uncertainty=True)


def test_a_lower_bound_needs_an_ensemble_and_a_number(finished_run: Path, attributes: Path) -> None:
    for folder in (finished_run, attributes):
        with pytest.raises(ModelError, match=f"The lower bound of {folder} was requested, but"):
            load(folder, reward="lower_bound")
    for k in (-0.5, float("nan"), float("inf")):
        with pytest.raises(ModelError, match=r"lower_bound_k is .*; expected a finite number of"):
            LoadOptions(lower_bound_k=k)
    with pytest.raises(ModelError, match="reward is 'median'; expected mean or lower_bound"):
        LoadOptions(reward="median")  # type: ignore[arg-type]


@pytest.mark.parametrize("outputs", [3, 5, 40])
def test_a_reward_is_the_same_to_the_last_bit_beside_any_others(
    ensemble: Path, outputs: int
) -> None:
    """Caches keep conversations one by one, and responses are scored together."""
    weights = (1 / outputs,) * outputs
    made_of = replace(
        FIVE_HEADS, names=tuple(map(str, range(outputs))), weights=weights, offsets=weights
    )
    model = load(ensemble, reward="lower_bound")
    model = replace(model, metadata=replace(model.metadata, outputs=made_of))
    outputs_KO = np.random.default_rng(0).normal(scale=100, size=(200, outputs))
    alone = [float(model.rewards_of(outputs_KO[k : k + 1])[0]) for k in range(200)]
    assert model.rewards_of(outputs_KO).tolist() == alone
