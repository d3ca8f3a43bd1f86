"""Best-of-N: the gold grade of the response with the highest reward among n, as n grows.

Shapes: Q prompts, K responses of one prompt, S sizes n at which the curve is measured.

A reward model is a proxy. Choosing its best of n responses raises the proxy reward without limit;
the gold grade rises only while the proxy ranks the top responses correctly (Gao et al. 2022, arXiv
2210.10760).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from plaudit.errors import DataError
from plaudit.evaluation.metrics import pairwise
from plaudit.evaluation.numbers import counted
from plaudit.evaluation.schema import BestOf, BestOfFit, BestOfPoint
from plaudit.evaluation.table import ScoreTable, codes
from plaudit.types import FloatArray

FEWEST = 3
"""Prompts with fewer responses are left out: two responses make a pair, not a curve."""


def expected_best(proxy_K: FloatArray, gold_K: FloatArray, sizes: Sequence[int]) -> FloatArray:
    """``(S,)``: expected gold of the response with the highest proxy among n of the K responses.

    The mean over all subsets of n responses, exactly: with responses sorted by proxy, the i-th is
    the best of C(i-1, n-1) of the C(K, n) subsets. Ties of the proxy are broken at random, so that
    equals share their gold.
    """
    count = len(proxy_K)
    _, code_K = np.unique(proxy_K, return_inverse=True)
    shared = np.bincount(code_K, gold_K) / np.bincount(code_K)
    # The codes rise with the proxy.
    sorted_K = shared[np.sort(code_K)]
    weights_SK = np.array(
        [[math.comb(i, n - 1) / math.comb(count, n) for i in range(count)] for n in sizes]
    )
    return np.asarray(weights_SK @ sorted_K, dtype=np.float64)


def kl_of_best(n: int) -> float:
    """``log n - (n - 1) / n`` nats: how far best-of-n can be from the policy that it draws from.

    Exact where no two responses can have equal rewards (continuous policies); in general an upper
    bound (Beirami et al. 2024, arXiv 2401.01879).
    """
    return math.log(n) - (n - 1) / n


def sizes_up_to(largest: int) -> list[int]:
    """Every n up to 16, then about two a doubling, and the largest."""
    doubled = (round(2 ** (step / 2)) for step in range(9, 2 * largest.bit_length() + 1))
    return sorted({*range(1, min(16, largest) + 1), *(n for n in doubled if n < largest), largest})


def best_of_n(table: ScoreTable, *, seed: int = 0) -> BestOf:
    """Best-of-N by the grade of each response, which is the gold standard.

    Prompts with fewer responses than the (lower) median are left out and counted, so that every n
    is over the same prompts. Gold and oracle at n = 1 are those of a random response. Proxy rewards
    are measured from their prompt's mean, since rewards compare only within a prompt.

    Raises:
        DataError: no prompt has at least three responses with grades.
    """
    comparison_N = codes(list(zip(table.dataset_N, table.number_N, strict=True)))
    together = [np.flatnonzero(comparison_N == code) for code in range(int(comparison_N.max()) + 1)]
    graded_N = np.isfinite(table.grade_N)
    usable = [rows for rows in together if len(rows) >= FEWEST and graded_N[rows].all()]
    if not usable:
        raise DataError(
            f"best-of-N needs prompts with at least {FEWEST} graded responses, and none of the"
            f" {len(together)} prompts has as many; use rows with prompt, responses and grades."
        )
    counts = sorted(len(rows) for rows in usable)
    largest = counts[(len(counts) - 1) // 2]
    kept = [rows for rows in usable if len(rows) >= largest]
    sizes = sizes_up_to(largest)
    rewards_and_grades = [(table.reward_N[rows], table.grade_N[rows]) for rows in kept]
    gold_QS = np.array([expected_best(r, g, sizes) for r, g in rewards_and_grades])
    oracle_QS = np.array([expected_best(g, g, sizes) for _, g in rewards_and_grades])
    proxy_QS = np.array([expected_best(r, r - r.mean(), sizes) for r, _ in rewards_and_grades])
    group_Q = codes([table.group_N[rows[0]] for rows in kept])
    series = np.concatenate([gold_QS.T, oracle_QS.T, proxy_QS.T])
    intervals = pairwise.bootstrap_means(series, group_Q, seed=seed)
    curve = tuple(
        BestOfPoint(
            n=n,
            kl=kl_of_best(n),
            gold=float(gold_QS[:, at].mean()),
            gold_ci95=intervals[at],
            oracle=float(oracle_QS[:, at].mean()),
            oracle_ci95=intervals[len(sizes) + at],
            proxy=float(proxy_QS[:, at].mean()),
            proxy_ci95=intervals[2 * len(sizes) + at],
        )
        for at, n in enumerate(sizes)
    )
    peak = int(gold_QS.mean(axis=0).argmax())
    gain = pairwise.paired_difference(gold_QS[:, 0], gold_QS[:, -1], group_Q)
    fall = pairwise.paired_difference(gold_QS[:, peak], gold_QS[:, -1], group_Q)
    possible = float((oracle_QS[:, -1] - oracle_QS[:, 0]).mean())
    result = BestOf(
        prompts=len(kept),
        left_out=len(together) - len(kept),
        largest_n=largest,
        curve=curve,
        gain=gain.mean,
        gain_ci95=gain.interval,
        share_of_oracle=gain.mean / possible if possible else None,
        peak_n=sizes[peak],
        fall_after_peak=fall.mean,
        fall_after_peak_ci95=fall.interval,
        over_optimised=fall.direction < 0,
        fit=_fit(curve),
        kl_note="log n - (n - 1) / n, exact for continuous rewards, else an upper bound",
        sentence="",
    )
    return replace(result, sentence=_sentence(result))


def _fit(curve: Sequence[BestOfPoint]) -> BestOfFit | None:
    if len(curve) < 3:
        return None
    d_S = np.sqrt([point.kl for point in curve])
    gain_S = np.array([point.gold for point in curve]) - curve[0].gold
    (alpha, minus_beta), *_ = np.linalg.lstsq(np.stack([d_S, d_S**2], axis=1), gain_S)
    peak_kl = float((alpha / (-2 * minus_beta)) ** 2) if minus_beta < 0 < alpha else None
    return BestOfFit(alpha=float(alpha), beta=float(-minus_beta), peak_kl=peak_kl)


def _sentence(result: BestOf) -> str:
    ends = result.gain_ci95
    interval = "" if ends is None else f" (95% CI {ends.low:+.4f} to {ends.high:+.4f})"
    share = result.share_of_oracle
    part = "" if share is None else f", {100 * share:.0f}% of the oracle's gain"
    left_out = (
        f" ({counted(result.left_out, 'prompt')} with fewer responses left out)"
        if result.left_out
        else ""
    )
    gain = (
        f"Best of {result.largest_n} gains {result.gain:+.4f}{interval} in grade over a random"
        f" response on {counted(result.prompts, 'prompt')}{left_out}{part}"
    )
    if result.over_optimised and result.fall_after_peak_ci95 is not None:
        low, high = result.fall_after_peak_ci95
        return (
            f"{gain}. Over-optimised: the grade peaks at n = {result.peak_n} and then falls by"
            f" {-result.fall_after_peak:.4f} (95% CI {-high:.4f} to {-low:.4f})."
        )
    return f"{gain}. The grade does not fall significantly up to n = {result.largest_n}."
