"""A reward model as the reward function of a policy trainer: TRL's ``reward_funcs``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from plaudit.reward_model import RewardModel
from plaudit.types import Skipped, Text

RewardFunction: TypeAlias = Callable[..., list[float | None]]


def reward_function(model: RewardModel) -> RewardFunction:
    """``f(prompts, completions, **columns)`` as TRL's GRPOTrainer and RLOOTrainer call it.

    A prompt is computed once for all its completions. A completion that the model cannot read (too
    long, rejected by its template) gets None, which TRL leaves out.
    """

    def plaudit_reward(
        prompts: Sequence[Text], completions: Sequence[Text], **columns: Any
    ) -> list[float | None]:
        # One comparison each: a completion that is too long must not cost the others their rewards.
        comparisons = [
            model.comparison(prompt, [completion])
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        return [
            None if isinstance(outcome, Skipped) else float(outcome[0])
            for outcome in model.score_comparisons(comparisons)
        ]

    return plaudit_reward
