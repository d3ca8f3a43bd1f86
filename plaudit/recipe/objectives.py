"""The table of training objectives: what each learns from, which keys of ``loss`` it reads.

A row names a function without importing torch: ``plaudit.losses.<family>.<name>``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal, TypeAlias

Family: TypeAlias = Literal["pairwise", "listwise", "pointwise"]

LearnsFrom: TypeAlias = Literal["order", "order_and_ties", "ratings"]
"""What a comparison must have: responses of different grades; that, or responses of one grade; or
a response with a rating (and then also responses of which only the order is known)."""

ITEMS: Final[Mapping[str, str]] = {
    "pairwise": "pair",
    "listwise": "comparison",
    "pointwise": "response",
}
"""What the loss of a family is of."""

_RATED: Final = frozenset({"margin", "soft_label", "label_smoothing", "temperature", "centering"})
_PAIRS: Final = _RATED | {"length"}
_RANKED: Final = frozenset({"temperature", "length"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A row of :data:`OBJECTIVES`.

    Attributes:
        family: The module of :mod:`plaudit.losses` that has the function.
        learns_from: The comparisons that it can use.
        formula: The loss of one :attr:`item` in LaTeX, as the model card prints it.
        where: What the letters of the formula stand for.
        source: Who published it.
        options: The keys of the recipe's ``loss`` section that it reads, beside ``kind``.
        learned: What the objective itself learns beside the model, in words; None for nothing.
        shares_over: What a comparison's weight is divided by where it makes several pairs: those of
            different grades, or all C(K, 2).
    """

    family: Family
    learns_from: LearnsFrom
    formula: str
    where: str
    source: str
    options: frozenset[str]
    learned: str | None = None
    shares_over: Literal["ordered_pairs", "all_pairs"] = "ordered_pairs"

    @property
    def reads(self) -> frozenset[str]:
        """The keys of the recipe's ``loss`` section that it reads."""
        own = self.options | EVERY_OBJECTIVE
        return own | OF_OUTPUTS if self.learned is None else own

    @property
    def item(self) -> str:
        """What the formula is the loss of."""
        return "comparison" if self.shares_over == "all_pairs" else ITEMS[self.family]


EVERY_OBJECTIVE: Final = frozenset(
    {"kind", "reward_norm", "consistency", "language_model", "heads"}
)
"""Keys of the ``loss`` section that every objective reads."""

OF_OUTPUTS: Final = frozenset({"outputs", "gate"})
"""Keys of the ``loss`` section that objectives read which learn nothing beside the model."""

PREFERENCE: Final = "preference"
"""The output that learns a comparison's own grades, unless the comparison has an attribute of that
name."""

OBJECTIVES: Final[Mapping[str, Objective]] = {
    "bradley_terry": Objective(
        family="pairwise",
        learns_from="order",
        formula=r"-\log \sigma(z)",
        where="z is the reward difference of a pair, better minus worse",
        source="Bradley and Terry (1952)",
        options=_PAIRS,
    ),
    "all_pairs": Objective(
        family="pairwise",
        learns_from="order",
        formula=r"-\binom{K}{2}^{-1} \sum \log \sigma(z)",
        where="z is the reward difference of each ordered pair of K responses",
        source="Ouyang et al. (2022), equation 1",
        options=_PAIRS,
        shares_over="all_pairs",
    ),
    "hinge": Objective(
        family="pairwise",
        learns_from="order",
        formula=r"\max(0, 1 - z)",
        where="z is the reward difference of a pair, better minus worse",
        source="Joachims (2002)",
        options=_PAIRS,
    ),
    "rao_kupper": Objective(
        family="pairwise",
        learns_from="order_and_ties",
        formula=r"-\log \sigma(z - \eta),\quad -\log\left[(e^{2\eta} - 1)\,"
        r"\sigma(z - \eta)\,\sigma(-z - \eta)\right]",
        where="z is the reward difference of a pair, the first term is of an ordered pair, the "
        "second of a tie, and η is the logarithm of Rao and Kupper's θ",
        source="Rao and Kupper (1967)",
        options=_PAIRS | {"tie_parameter"},
        learned="theta",
    ),
    "davidson": Objective(
        family="pairwise",
        learns_from="order_and_ties",
        formula=r"-\log \frac{e^{z/2}}{e^{z/2} + e^{-z/2} + \nu},\quad"
        r" -\log \frac{\nu}{e^{z/2} + e^{-z/2} + \nu}",
        where="z is the reward difference of a pair, the first term is of an ordered pair, the "
        "second of a tie",
        source="Davidson (1970)",
        options=_PAIRS | {"tie_parameter"},
        learned="nu",
    ),
    "plackett_luce": Objective(
        family="listwise",
        learns_from="order",
        formula=r"-\sum_i \log \frac{e^{r_i}}{e^{r_i} + \sum_{j \prec i} e^{r_j}}",
        where="r are the rewards of the responses to a prompt, and the inner sum is over those "
        "ranked below response i",
        source="Luce (1959), Plackett (1975)",
        options=_RANKED,
    ),
    "listnet": Objective(
        family="listwise",
        learns_from="order",
        formula=r"-\sum_i \mathrm{softmax}(g)_i \log \mathrm{softmax}(r)_i",
        where="r are the rewards and g the grades of the responses to a prompt",
        source="Cao et al. (2007)",
        options=_RANKED,
    ),
    "mse": Objective(
        family="pointwise",
        learns_from="ratings",
        formula=r"(r - y)^2",
        where="r is the reward of a response and y its rating",
        source="least squares",
        options=_RATED,
    ),
    "huber": Objective(
        family="pointwise",
        learns_from="ratings",
        formula=r"\frac{1}{2} e^2 \text{ if } e \leq \delta, \text{ else } "
        r"\delta (e - \frac{1}{2}\delta)",
        where="e = |r − y|, r is the reward of a response and y its rating",
        source="Huber (1964)",
        options=_RATED | {"huber_delta"},
    ),
    "bce": Objective(
        family="pointwise",
        learns_from="ratings",
        formula=r"-y \log \sigma(r) - (1 - y) \log \sigma(-r)",
        where="r is the reward of a response and y its label: 1 is good and 0 is bad",
        source="logistic regression",
        options=_RATED,
    ),
    "ordinal": Objective(
        family="pointwise",
        learns_from="ratings",
        formula=r"-\log\left[\sigma(\theta_{y} - r) - \sigma(\theta_{y-1} - r)\right]",
        where="r is the reward of a response, y is the level of its rating, and θ are the "
        "thresholds between levels",
        source="McCullagh (1980)",
        options=_RATED,
        learned="thresholds",
    ),
}
"""Name of an objective, which is ``loss.kind`` of a recipe, to its row."""


def learns_from(kind: str | None) -> LearnsFrom:
    """The labels that an objective learns from; order where nothing is known of it."""
    row = None if kind is None else OBJECTIVES.get(kind)
    return "order" if row is None else row.learns_from


def parameters_of(kind: str, learned: Sequence[float]) -> dict[str, tuple[float, ...]]:
    """What an objective learned beside the model, under the name of its paper.

    ``learned`` are the numbers that it trains: log log θ, log ν, or the lowest threshold and the
    logarithms of the steps between thresholds; then the weight of the length where that is fitted.
    """
    name = OBJECTIVES[kind].learned
    if name == "thresholds":
        steps = (math.exp(step) for step in learned[1:])
        return {name: tuple(accumulate(steps, initial=learned[0]))}
    own, rest = learned[: name is not None], learned[name is not None :]
    parameters = {"length_weight": tuple(rest)} if rest else {}
    if name is None or not own:
        return parameters
    once = math.exp(own[0])
    return {name: (math.exp(once) if name == "theta" else once,), **parameters}
