"""A reward model as the reward function of a policy trainer: TRL's ``reward_funcs``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, TypeAlias

from plaudit.serve.scorer import RewardModel
from plaudit.tokens.encode import Refused
from plaudit.types import Text

RewardFunction: TypeAlias = Callable[..., list[float | None]]


def reward_function(model: RewardModel) -> RewardFunction:
    """``f(prompts, completions, **columns)`` as TRL's GRPOTrainer and RLOOTrainer call it.

    Completions of one prompt stand together there, so the prompt is computed once for all of them.
    A completion that the model cannot read (too long, refused by its template) gets None, which
    TRL leaves out.
    """

    def plaudit_reward(
        prompts: Sequence[Text], completions: Sequence[Text], **columns: Any
    ) -> list[float | None]:
        together = groupby(zip(prompts, completions, strict=True), key=lambda pair: pair[0])
        comparisons = [
            model.comparison(prompt, [completion for _, completion in pairs])
            for prompt, pairs in together
        ]
        rewards: list[float | None] = []
        for comparison, outcome in zip(
            comparisons, model.score_comparisons(comparisons), strict=True
        ):
            if not isinstance(outcome, Refused):
                rewards += outcome.tolist()
                continue
            # One completion that is too long must not cost the others of its prompt their rewards.
            for response in comparison.responses:
                (alone,) = model.score_comparisons([replace(comparison, responses=(response,))])
                rewards.append(None if isinstance(alone, Refused) else float(alone[0]))
        return rewards

    return plaudit_reward
