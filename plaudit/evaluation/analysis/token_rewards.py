"""The reward along the responses of an evaluation, by the model that was evaluated."""

from __future__ import annotations

from collections.abc import Sequence

from plaudit.errors import DataError, ModelError
from plaudit.evaluation.analysis.mistakes import Along
from plaudit.reward_model import RewardModel
from plaudit.types import Comparison, Message, Text, Turns


def along_of(model: RewardModel) -> Along:
    """What ``mistakes.with_texts`` asks for the reward along a response.

    It answers ``None`` where there is none: by an encoder, whose every token sees the whole text,
    and for a comparison that is rendered with tools or template arguments of its own.
    """

    def along(comparison: Comparison, response: int) -> Sequence[tuple[str, float]] | None:
        if comparison.tools is not None or comparison.chat_template_kwargs:
            return None
        try:
            tokens = model.token_rewards(
                _text(comparison.prompt), _text(comparison.responses[response])
            )
        except (DataError, ModelError):
            return None
        return [(token.text, token.reward) for token in tokens]

    return along


def _text(turns: Turns) -> Text:
    return turns if isinstance(turns, str) else [Message.as_dict(turn) for turn in turns]
