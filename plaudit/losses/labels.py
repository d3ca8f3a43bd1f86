"""What the comparisons of a batch say, as arrays: ordered pairs, rankings and ratings.

Shapes: R responses of a batch, P pairs of responses, C rankings of up to K responses each,
N rated responses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plaudit.recipe.objectives import Objective
from plaudit.types import TokenTree, arrays_to_device


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """P pairs of a batch. ``winner_P`` and ``loser_P`` are rows of ``scores_R``.

    ``target_P`` is the probability that the winner is the better one: 1, or the share of
    annotators who said so. Of a tie, either may be called the winner.
    """

    winner_P: Tensor
    loser_P: Tensor
    margin_P: Tensor
    weight_P: Tensor
    target_P: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Rankings:
    """C rankings of a batch, padded to the largest K of them.

    ``rows_CK`` are rows of ``scores_R``, 0 where ``present_CK`` is false. ``below_CKK[c, i, j]`` is
    true where response j has a lower grade than response i.
    """

    rows_CK: Tensor
    present_CK: Tensor
    grades_CK: Tensor
    below_CKK: Tensor
    weight_C: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratings:
    """N rated responses of a batch. ``row_N`` are rows of ``scores_R``.

    ``rating_N`` is the rating, or its level (from 0) where the objective has levels.
    """

    row_N: Tensor
    rating_N: Tensor
    weight_N: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """N responses in two forms that say the same: rows of ``scores_R`` and a weight of each."""

    origin_N: Tensor
    copy_N: Tensor
    weight_N: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What an objective learns from in a batch, and ``count``, the sum of its weights.

    ``pairs`` are of different grades, ``ties`` of equal ones; without an objective that learns from
    ties there are none. ``pairs`` also measure accuracy: those that an objective does not learn
    from have no weight. ``weight_R`` shares the weight of a comparison among its responses, without
    copies. ``length_R`` are the tokens of each branch, which begins where the conversations of a
    tree differ: only its differences within a tree are those of the responses.
    """

    pairs: Pairs
    ties: Pairs
    rankings: Rankings | None
    ratings: Ratings | None
    copies: Copies
    weight_R: Tensor
    length_R: Tensor
    count: float


def ordered_pairs(grades: Sequence[float]) -> list[tuple[int, int]]:
    """(better, worse) for every pair of responses with different grades."""
    pairs = []
    for i, j in combinations(range(len(grades)), 2):
        if grades[i] > grades[j]:
            pairs.append((i, j))
        elif grades[j] > grades[i]:
            pairs.append((j, i))
    return pairs


def is_usable(tree: TokenTree, objective: Objective) -> bool:
    """Whether an objective learns from a tree. A dummy tree has nothing to learn from."""
    known = [grade for grade in tree.grades if not math.isnan(grade)]
    if objective.learns_from == "ratings" and tree.rated and known:
        return True
    if objective.learns_from == "order_and_ties":
        return len(known) > 1
    return len(set(known)) > 1


def count_of(trees: Sequence[TokenTree], objective: Objective) -> float:
    """What the loss of all ``trees`` is divided by: comparisons, each with its weight."""
    return float(sum(tree.weight for tree in trees if is_usable(tree, objective)))


def labels_of(
    trees: Sequence[TokenTree],
    objective: Objective,
    device: torch.device,
    *,
    levels: Sequence[float] = (),
) -> Labels:
    """The labels of a batch as tensors, in one copy to ``device``.

    A comparison's weight is shared among its pairs, or among its rated responses; a response whose
    grade is NaN has no part in it. ``levels`` are the ratings of an objective that learns levels,
    in ascending order.
    """
    shares: list[float] = []
    for tree in trees:
        known = [not math.isnan(grade) for grade in tree.grades]
        share = tree.weight / sum(known) if is_usable(tree, objective) else 0.0
        # A tree without grades, and copies, have none.
        shares += [share * one for one in known]
        shares += [0.0] * (len(tree.branches) - len(known))
    pairs, ties = _pair_columns(trees, objective)
    own: list[npt.NDArray[Any]] = []
    if objective.family == "listwise":
        own = _ranking_columns(trees)
    elif objective.family == "pointwise":
        own = _rating_columns(trees, levels)
    lengths = [len(branch) for tree in trees for branch in tree.branches]
    of_responses = [np.asarray(shares, np.float32), np.asarray(lengths, np.float32)]
    arrays = [*of_responses, *_copy_columns(trees, objective), *pairs, *ties, *own]
    weight_R, length_R, origin_N, copy_N, copied_N, *moved = arrays_to_device(arrays, device)
    size = len(pairs)
    rest = moved[2 * size :]
    return Labels(
        pairs=_record(Pairs, moved[:size]),
        ties=_record(Pairs, moved[size : 2 * size]),
        rankings=_record(Rankings, rest) if objective.family == "listwise" else None,
        ratings=_record(Ratings, rest) if objective.family == "pointwise" else None,
        copies=Copies(origin_N=origin_N, copy_N=copy_N, weight_N=copied_N),
        weight_R=weight_R,
        length_R=length_R,
        count=count_of(trees, objective),
    )


Columns = TypeVar("Columns", Pairs, Rankings, Ratings)


def _record(kind: type[Columns], tensors: Sequence[Tensor]) -> Columns:
    """The record of these columns, which stand in the order of its fields."""
    names = (field.name for field in fields(kind))
    return kind(**dict(zip(names, tensors, strict=True)))


def _starts(trees: Sequence[TokenTree]) -> Iterator[tuple[TokenTree, int]]:
    """Each tree with the row of its first response."""
    row = 0
    for tree in trees:
        yield tree, row
        row += len(tree.branches)


def _copy_columns(trees: Sequence[TokenTree], objective: Objective) -> list[npt.NDArray[Any]]:
    rows: list[tuple[int, int]] = []
    weights: list[float] = []
    for tree, start in _starts(trees):
        if tree.copies and is_usable(tree, objective):
            first = start + len(tree.branches) - len(tree.copies)
            rows += [(start + origin, first + n) for n, origin in enumerate(tree.copies)]
            weights += [tree.weight / len(tree.copies)] * len(tree.copies)
    rows_N2 = np.asarray(rows, np.int64).reshape(-1, 2)
    return [*map(np.ascontiguousarray, rows_N2.T), np.asarray(weights, np.float32)]


def _pair_columns(
    trees: Sequence[TokenTree], objective: Objective
) -> tuple[list[npt.NDArray[Any]], list[npt.NDArray[Any]]]:
    """The columns of pairs of different grades, and of those of equal ones."""
    ordered, tied = _PairColumns(), _PairColumns()
    for tree, start in _starts(trees):
        order = ordered_pairs(tree.grades)
        every = list(combinations(range(len(tree.grades)), 2))
        ties: list[tuple[int, int]] = []
        if objective.learns_from == "order_and_ties":
            ties = [(i, j) for i, j in every if tree.grades[i] == tree.grades[j]]
        known = sum(not math.isnan(grade) for grade in tree.grades)
        every_pair = objective.shares_over == "all_pairs"
        share = math.comb(known, 2) if every_pair else len(order) + len(ties)
        # Ratings teach more than the order that they imply.
        by_rating = objective.learns_from == "ratings" and tree.rated
        weight = 0.0 if by_rating or not share else tree.weight / share
        ordered.add(start, order, (tree.margin, weight, tree.soft_label))
        tied.add(start, ties, (0.0, weight, 1.0))
    return ordered.arrays(), tied.arrays()


class _PairColumns:
    def __init__(self) -> None:
        self.rows: list[tuple[int, int]] = []
        self.numbers: list[tuple[float, float, float]] = []

    def add(
        self, start: int, pairs: Sequence[tuple[int, int]], numbers: tuple[float, float, float]
    ) -> None:
        self.rows += [(start + i, start + j) for i, j in pairs]
        self.numbers += [numbers] * len(pairs)

    def arrays(self) -> list[npt.NDArray[Any]]:
        rows_P2 = np.asarray(self.rows, np.int64).reshape(-1, 2)
        numbers_P3 = np.asarray(self.numbers, np.float32).reshape(-1, 3)
        return [np.ascontiguousarray(column) for column in (*rows_P2.T, *numbers_P3.T)]


def _ranking_columns(trees: Sequence[TokenTree]) -> list[npt.NDArray[Any]]:
    ranked = [(tree, start) for tree, start in _starts(trees) if ordered_pairs(tree.grades)]
    most = max((len(tree.grades) for tree, _ in ranked), default=0)
    shape = (len(ranked), most)
    rows_CK, grades_CK = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    present_CK = np.zeros(shape, np.bool_)
    for number, (tree, start) in enumerate(ranked):
        size = len(tree.grades)
        rows_CK[number, :size] = np.arange(start, start + size)
        known_K = ~np.isnan(tree.grades)
        grades_CK[number, :size] = np.where(known_K, tree.grades, 0.0)
        present_CK[number, :size] = known_K
    below_CKK = grades_CK[:, None, :] < grades_CK[:, :, None]
    below_CKK &= present_CK[:, None, :] & present_CK[:, :, None]
    weight_C = np.asarray([tree.weight for tree, _ in ranked], np.float32)
    return [rows_CK, present_CK, grades_CK, below_CKK, weight_C]


def _rating_columns(trees: Sequence[TokenTree], levels: Sequence[float]) -> list[npt.NDArray[Any]]:
    rows: list[int] = []
    rating: list[float] = []
    weight: list[float] = []
    for tree, start in _starts(trees):
        known = [k for k, grade in enumerate(tree.grades) if not math.isnan(grade)]
        if tree.rated and known:
            rows += [start + k for k in known]
            rating += [tree.grades[k] for k in known]
            weight += [tree.weight / len(known)] * len(known)
    rating_N = np.asarray(rating, np.float64)
    if levels:
        rating_N = np.searchsorted(np.asarray(levels), rating_N).astype(np.float64)
    return [
        np.asarray(rows, np.int64),
        rating_N.astype(np.float32),
        np.asarray(weight, np.float32),
    ]
