"""Per-token rewards of the responses of an evaluation, by the model that was evaluated."""

from __future__ import annotations

from collections.abc import Sequence

from plaudit.errors import DataError, ModelError
from plaudit.evaluation.analysis.mistakes import RewardsOf
from plaudit.reward_model import RewardModel
from plaudit.types import Comparison, Message, Text, TokenReward, Turns


def token_rewards_of(model: RewardModel) -> RewardsOf:
    """What ``mistakes.with_texts`` asks for the per-token rewards of a response.

    It answers ``None`` where there are none: by an encoder, whose every token sees the whole text,
    and for a comparison that is rendered with tools or template arguments of its own.
    """

    def rewards(comparison: Comparison, response: int) -> Sequence[TokenReward] | None:
        if comparison.tools is not None or comparison.chat_template_kwargs:
            return None
        try:
            return model.token_rewards(
                _text(comparison.prompt), _text(comparison.responses[response])
            )
        except (DataError, ModelError):
            return None

    return rewards


def _text(turns: Turns) -> Text:
    return turns if isinstance(turns, str) else [Message.as_dict(turn) for turn in turns]
