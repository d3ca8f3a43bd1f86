"""Per-token rewards as they are recorded: bounded, and complete in what they count."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.evaluation.analysis.mistakes import bounded
from plaudit.types import TokenReward

TOKENS = st.lists(
    st.tuples(st.sampled_from(["", "a", "bc "]), st.floats(-9, 9, allow_nan=False)), max_size=30
)


def rewards(tokens: list[tuple[str, float]]) -> list[TokenReward]:
    return [TokenReward(text=text, reward=reward) for text, reward in tokens]


@given(TOKENS, st.integers(2, 8))
def test_tokens_are_kept_or_counted(tokens: list[tuple[str, float]], most: int) -> None:
    facts = bounded(rewards(tokens), most=most)
    if facts is None:
        assert not tokens
        return
    visible = sum(bool(text) for text, _ in tokens) + (tokens[-1][0] == "")
    assert len(facts.tokens) + facts.left_out == visible
    assert len(facts.tokens) <= most
    assert facts.tokens[-1].reward == tokens[-1][1]
    if not facts.left_out:
        assert "".join(one.text for one in facts.tokens) == "".join(t for t, _ in tokens)


def test_changes_and_extremes() -> None:
    # The second token is half of a character that the third completes.
    facts = bounded(rewards([("a", 1.0), ("", 5.0), ("é", 3.0), ("b", 2.5)]))
    assert facts is not None
    changes = [(one.text, one.change) for one in facts.tokens]
    assert changes == [("a", None), ("é", 2.0), ("b", -0.5)]
    assert facts.largest_rise is not None
    assert facts.largest_fall is not None
    assert facts.largest_rise.text == "é"
    assert facts.largest_fall.text == "b"


@pytest.mark.parametrize("tokens", [None, [], [("a", float("nan")), ("b", 1.0)]])
def test_nothing_is_nothing(tokens: list[tuple[str, float]] | None) -> None:
    assert bounded(tokens and rewards(tokens)) is None
