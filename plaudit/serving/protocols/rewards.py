"""plaudit's own protocols: K responses to a prompt with their rewards, and a pair compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, Field

from plaudit.serving.protocols.records import (
    Body,
    Dialogue,
    Many,
    Messages,
    Part,
    Protocol,
    ScoreRequest,
    ScoreResult,
    Tools,
    as_text,
)
from plaudit.types import TokenReward


class OwnUsage(BaseModel):
    """Token counts of a request."""

    prompt_tokens: int = Field(description="Number of tokens of all conversations.")
    computed_tokens: int = Field(
        description="Number of tokens that the model computed: a shared prompt counts once, a "
        "repeated conversation not at all."
    )
    total_tokens: int = Field(description="Same as prompt_tokens.")


class RewardsRequest(Body):
    """A prompt and its responses, as texts or as messages."""

    renamed: ClassVar[Mapping[str, str]] = {"along": "token_rewards"}
    prompt: str | Messages = Field(description="The prompt, as text or as messages.")
    responses: Annotated[Many[str | Messages], Field(min_length=1)] = Field(
        description="The responses, each as text or as messages."
    )
    tools: Tools = None
    token_rewards: bool = Field(default=False, description="Add per-token rewards to the response.")
    outputs: bool = Field(
        default=False,
        description="Add the outputs of each response; an error if the model has one output.",
    )
    uncertainty: bool = Field(
        default=False,
        description="Add mean, spread and lower_bound of each response; an error if the model has"
        " no ensemble of heads.",
    )

    def parts(self) -> Sequence[Part]:
        responses = tuple(map(as_text, self.responses))
        tools = self.tools or None
        return [Dialogue(prompt=as_text(self.prompt), responses=responses, tools=tools)]

    def read(self) -> ScoreRequest:
        return ScoreRequest(
            parts=self.parts(),
            token_rewards=self.token_rewards,
            outputs=self.outputs,
            uncertainty=self.uncertainty,
        )


class RewardsResponse(BaseModel):
    """Rewards, in the order of the responses."""

    id: str
    object: Literal["rewards"] = "rewards"
    model: str
    rewards: list[float] = Field(description="Reward of each response; higher is better.")
    win_probabilities: list[float] = Field(
        description="Probability that each response is the best: softmax of reward / temperature"
        " (Plackett-Luce; Bradley-Terry for two). The temperature is fitted on evaluation data."
    )
    ranks: list[int] = Field(description="Rank of each response; 1 is best, ties share a rank.")
    tokens: list[int] = Field(description="Number of tokens of each conversation.")
    usage: OwnUsage
    token_rewards: tuple[tuple[TokenReward, ...], ...] | None = None
    outputs: list[dict[str, float]] | None = Field(
        default=None,
        description="Outputs of each response by name.",
        examples=[[{"helpfulness": 3.21, "correctness": 2.87}]],
    )
    mean: list[float] | None = Field(
        default=None, description="Mean over the heads of an ensemble.", examples=[[1.42]]
    )
    spread: list[float] | None = Field(
        default=None, description="Standard deviation over the heads.", examples=[[0.31]]
    )
    lower_bound: list[float] | None = Field(
        default=None,
        description="mean - k * spread, with the server's --lower-bound-k.",
        examples=[[1.11]],
    )


class CompareRequest(Body):
    """A prompt and two responses."""

    prompt: str | Messages = Field(description="The prompt, as text or as messages.")
    a: str | Messages = Field(description="The first response.")
    b: str | Messages = Field(description="The second response.")
    tools: Tools = None

    def parts(self) -> Sequence[Part]:
        responses = as_text(self.a), as_text(self.b)
        tools = self.tools or None
        return [Dialogue(prompt=as_text(self.prompt), responses=responses, tools=tools)]


class Comparison(BaseModel):
    """Rewards of two responses and the probability of a preference."""

    id: str
    object: Literal["comparison"] = "comparison"
    model: str
    rewards: list[float] = Field(description="Rewards of a and b.")
    probability: float = Field(description="Calibrated probability that a is preferred to b.")
    preferred: Literal["a", "b", "tie"]
    tokens: list[int] = Field(description="Number of tokens of each conversation.")
    usage: OwnUsage


def answer_rewards(request: RewardsRequest, scored: ScoreResult) -> RewardsResponse:
    rewards = scored.rewards
    asked = ("outputs",) * request.outputs + ("mean", "spread", "lower_bound") * request.uncertainty
    details = scored.details or ()
    return RewardsResponse(
        id=f"rewards-{scored.id}",
        model=scored.model,
        rewards=rewards,
        win_probabilities=win_probabilities(rewards, scored.temperature),
        ranks=ranks(rewards),
        tokens=scored.tokens,
        usage=_usage(scored),
        token_rewards=scored.token_rewards,
        **{name: [getattr(one, name) for one in details] for name in asked},
    )


def answer_compare(request: CompareRequest, scored: ScoreResult) -> Comparison:
    a, b = scored.rewards
    return Comparison(
        id=f"comparison-{scored.id}",
        model=scored.model,
        rewards=[a, b],
        probability=win_probabilities([a, b], scored.temperature)[0],
        preferred="tie" if a == b else "a" if a > b else "b",
        tokens=scored.tokens,
        usage=_usage(scored),
    )


def win_probabilities(rewards: Sequence[float], temperature: float) -> list[float]:
    """Softmax of the rewards over the temperature."""
    top = max(rewards)
    weights = [math.exp((reward - top) / temperature) for reward in rewards]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def ranks(rewards: Sequence[float]) -> list[int]:
    """1 for the best; equal rewards share a rank."""
    place: dict[float, int] = {}
    for number, reward in enumerate(sorted(rewards, reverse=True), start=1):
        place.setdefault(reward, number)
    return [place[reward] for reward in rewards]


def _usage(scored: ScoreResult) -> OwnUsage:
    total = sum(scored.tokens)
    return OwnUsage(prompt_tokens=total, computed_tokens=scored.computed, total_tokens=total)


REWARDS = Protocol(
    name="rewards",
    summary="Rewards of K responses to one prompt",
    spoken_by="plaudit.client",
    paths=("/v1/rewards",),
    request=RewardsRequest,
    response=RewardsResponse,
    answer=answer_rewards,
    example={"prompt": "Name a prime.", "responses": ["7", "8", "a prime"]},
    exact_model=True,
)

COMPARE = Protocol(
    name="compare",
    summary="Probability that one of two responses is preferred",
    spoken_by="plaudit.client",
    paths=("/v1/compare",),
    request=CompareRequest,
    response=Comparison,
    answer=answer_compare,
    example={"prompt": "Name a prime.", "a": "7", "b": "8"},
    exact_model=True,
)
