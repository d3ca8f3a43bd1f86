"""Best-of-N: what the model's favourites are worth by a gold standard, and where more is worse.

Shapes: Q prompts, K responses of one prompt, S sizes n at which the curve is measured.

A reward model is a proxy. Picking its favourite among n responses raises the proxy without end; the
gold grade rises with it only as long as the proxy is right about the top (Gao et al. 2022, arXiv
2210.10760).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plaudit.errors import DataError
from plaudit.evaluation.facts import json_safe
from plaudit.evaluation.metrics import pairwise
from plaudit.evaluation.table import ScoreTable, codes
from plaudit.types import FloatArray

FEWEST = 3
"""Fewer responses than this make a pair, not a choice."""


def expected_best(proxy_K: FloatArray, gold_K: FloatArray, sizes: Sequence[int]) -> FloatArray:
    """``(S,)``: expected gold of the proxy's favourite among n of the K responses.

    The mean over all subsets of n responses, exactly: with responses sorted by proxy, the i-th is
    the favourite of C(i-1, n-1) of the C(K, n) subsets. Ties of the proxy are broken at random,
    so that equals share their gold.
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
    sizes = list(range(1, min(16, largest) + 1))
    step = 9
    while (n := round(2 ** (step / 2))) < largest:
        if n > sizes[-1]:
            sizes.append(n)
        step += 1
    return sizes if sizes[-1] == largest else [*sizes, largest]


def best_of_n(table: ScoreTable, *, seed: int = 0) -> dict[str, Any]:
    """The ``best_of`` block of ``pairwise.json``, JSON-safe.

    Gold is the grade of each response. Prompts with fewer responses than the (lower) median are
    left out and counted, so that every n is over the same prompts. ``gold`` is the proxy's choice,
    ``oracle`` the best there is; both at n = 1 are a random response. Proxies are measured from
    their prompt's mean, since rewards compare only within a prompt.

    Raises:
        DataError: no prompt has at least three responses with grades.
    """
    comparison_N = codes(list(zip(table.dataset_N, table.number_N, strict=True)))
    together = [np.flatnonzero(comparison_N == code) for code in range(int(comparison_N.max()) + 1)]
    usable = [rows for rows in together if len(rows) >= FEWEST]
    if not usable:
        raise DataError(
            f"best-of-N needs prompts with at least {FEWEST} graded responses, and none of the "
            f"{len(together)} has; give rows of prompt, responses and grades."
        )
    counts = sorted(len(rows) for rows in usable)
    largest = counts[(len(counts) - 1) // 2]
    kept = [rows for rows in usable if len(rows) >= largest]
    sizes = sizes_up_to(largest)
    gold_QS, oracle_QS, proxy_QS = (
        np.array([curve(table.reward_N[rows], table.grade_N[rows], sizes) for rows in kept])
        for curve in (expected_best, _oracle, _own)
    )
    group_Q = codes([table.group_N[rows[0]] for rows in kept])
    series = np.concatenate([gold_QS.T, oracle_QS.T, proxy_QS.T])
    intervals = pairwise.bootstrap_means(series, group_Q, seed=seed)
    named = dict(zip(("gold", "oracle", "proxy"), (gold_QS, oracle_QS, proxy_QS), strict=True))
    curve = [
        {
            "n": n,
            "kl": kl_of_best(n),
            **{
                key: value
                for place, (name, values_QS) in enumerate(named.items())
                for key, value in (
                    (name, float(values_QS[:, at].mean())),
                    (f"{name}_ci95", intervals[place * len(sizes) + at]),
                )
            },
        }
        for at, n in enumerate(sizes)
    ]
    block = {
        "prompts": len(kept),
        "left_out": len(together) - len(kept),
        "largest_n": largest,
        "curve": curve,
        **_verdict(sizes, gold_QS, oracle_QS, group_Q),
        "fit": _fit(curve),
        "kl_note": "log n - (n - 1) / n: exact for continuous rewards, else an upper bound",
    }
    safe: dict[str, Any] = json_safe(block)
    return {**safe, "sentence": _sentence(safe)}


def _oracle(proxy_K: FloatArray, gold_K: FloatArray, sizes: Sequence[int]) -> FloatArray:
    return expected_best(gold_K, gold_K, sizes)


def _own(proxy_K: FloatArray, gold_K: FloatArray, sizes: Sequence[int]) -> FloatArray:
    return expected_best(proxy_K, proxy_K - proxy_K.mean(), sizes)


def _verdict(
    sizes: Sequence[int], gold_QS: FloatArray, oracle_QS: FloatArray, group_Q: np.ndarray
) -> dict[str, Any]:
    """Where gold peaks, whether it falls after that beyond noise, and its share of the oracle's."""
    peak = int(gold_QS.mean(axis=0).argmax())
    gain = pairwise.paired_difference(gold_QS[:, 0], gold_QS[:, -1], group_Q)
    fall = pairwise.paired_difference(gold_QS[:, peak], gold_QS[:, -1], group_Q)
    possible = float((oracle_QS[:, -1] - oracle_QS[:, 0]).mean())
    over = fall.interval is not None and fall.interval.high < 0
    return {
        "gain": gain.mean,
        "gain_ci95": gain.interval,
        "share_of_oracle": gain.mean / possible if possible else math.nan,
        "peak_n": sizes[peak],
        "fall_after_peak": fall.mean,
        "fall_after_peak_ci95": fall.interval,
        "over_optimised": over,
    }


def _fit(curve: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """``gain = d (alpha - beta d)`` with ``d = sqrt(KL)`` (Gao et al.), by least squares.

    ``peak_kl`` is where the fitted curve is highest, None where it never falls.
    """
    if len(curve) < 3:
        return None
    d_S = np.sqrt([point["kl"] for point in curve])
    gain_S = np.array([point["gold"] for point in curve]) - curve[0]["gold"]
    (alpha, minus_beta), *_ = np.linalg.lstsq(np.stack([d_S, d_S**2], axis=1), gain_S)
    peak = (alpha / (-2 * minus_beta)) ** 2 if minus_beta < 0 < alpha else math.nan
    return {"alpha": float(alpha), "beta": float(-minus_beta), "peak_kl": float(peak)}


def _sentence(block: Mapping[str, Any]) -> str:
    ends = block["gain_ci95"]
    interval = "" if ends is None else f" [{ends[0]:+.4f}, {ends[1]:+.4f}]"
    share = block["share_of_oracle"]
    part = "" if share is None else f", {100 * share:.0f}% of what the best choice would gain"
    left_out = (
        f" ({block['left_out']:,} with fewer responses left out)" if block["left_out"] else ""
    )
    gain = (
        f"Best of {block['largest_n']} gains {block['gain']:+.4f}{interval} in grade over a random "
        f"response on {block['prompts']:,} prompts{left_out}{part}"
    )
    if block["over_optimised"]:
        low, high = block["fall_after_peak_ci95"]
        return (
            f"{gain}. Over-optimised: the grade peaks at n = {block['peak_n']} and falls by "
            f"{-block['fall_after_peak']:.4f} [{-high:.4f}, {-low:.4f}] after it."
        )
    return f"{gain}. No fall of the grade beyond noise up to n = {block['largest_n']}."
