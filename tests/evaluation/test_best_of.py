"""Best-of-N: the estimator against every subset, known policies, and the ranked documentation."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from plaudit.data.load import load_comparisons
from plaudit.data.sources.documentation import MAX_DEGRADATIONS, RESPONSES, build_ranked
from plaudit.errors import DataError
from plaudit.evaluation.metrics.best_of import (
    best_of_n,
    expected_best,
    kl_of_best,
    sizes_up_to,
)
from plaudit.evaluation.schema import FORMAT, METRICS_FILE, RecordedEvaluation, read_recorded
from plaudit.evaluation.table import ScoreTable, build_table
from plaudit.recipe.schema import Source
from plaudit.storage.atomic import write_json
from tests.tables import score_row


def table_of(rewards: np.ndarray, grades: np.ndarray) -> ScoreTable:
    """Rows of ``(Q, K)`` arrays; nan leaves a response out."""
    return build_table(
        score_row(
            prompt,
            response,
            comparison=f"q{prompt}",
            group=f"g{prompt}",
            reward=float(rewards[prompt, response]),
            grade=float(grades[prompt, response]),
        )
        for prompt in range(rewards.shape[0])
        for response in range(rewards.shape[1])
        if not math.isnan(rewards[prompt, response])
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_estimator_without_ties_and_with_random_tie_breaking(seed: int) -> None:
    generator = np.random.default_rng(seed)
    gold = generator.normal(size=6)
    proxy = generator.permutation(6).astype(float)
    tied = np.floor(proxy / 2)
    for n in range(1, 7):
        subsets = [list(s) for s in itertools.combinations(range(6), n)]
        plain = [gold[s[int(proxy[s].argmax())]] for s in subsets]
        assert expected_best(proxy, gold, [n])[0] == pytest.approx(np.mean(plain), rel=1e-9)
        # All ways of breaking ties, each as likely: three pairs of equals.
        broken = []
        for flips in itertools.product((0, 1), repeat=3):
            order = tied + 0.1 * np.where(proxy % 2 == 0, 1, -1) * np.array(
                [1 if flips[int(level)] else -1 for level in tied]
            )
            broken += [gold[s[int(order[s].argmax())]] for s in subsets]
        assert expected_best(tied, gold, [n])[0] == pytest.approx(np.mean(broken), rel=1e-9)


def test_kl_is_that_of_the_density_of_a_maximum() -> None:
    """Best of n of a uniform policy has density n x^(n-1): its KL, integrated."""
    from scipy.integrate import quad

    for n in (1, 2, 5, 64):
        integral, _ = quad(
            lambda x, n=n: n * x ** (n - 1) * math.log(n * x ** (n - 1)) if x else 0.0, 0, 1
        )
        assert kl_of_best(n) == pytest.approx(integral, abs=1e-7)


def test_sizes() -> None:
    assert sizes_up_to(3) == [1, 2, 3]
    assert sizes_up_to(16) == list(range(1, 17))
    assert sizes_up_to(100) == [*range(1, 17), 23, 32, 45, 64, 91, 100]


def test_a_perfect_proxy_gains_all_there_is(tmp_path: Path) -> None:
    grades = np.random.default_rng(0).normal(size=(40, 8))
    result = best_of_n(table_of(2 * grades, grades))
    assert result.share_of_oracle == pytest.approx(1.0)
    assert not result.over_optimised
    assert [point.gold for point in result.curve] == pytest.approx(
        [point.oracle for point in result.curve]
    )
    assert result.curve[-1].gold == pytest.approx(grades.max(axis=1).mean())
    assert result.curve[0].gold == pytest.approx(grades.mean())
    stored = json.loads(json.dumps(asdict(result), allow_nan=False))
    recorded = {
        "format": FORMAT,
        "plaudit_version": "0",
        "model": "runs/first",
        "data": None,
        "eval": None,
        "environment": {},
        "best_of": stored,
    }
    write_json(tmp_path / METRICS_FILE, recorded)
    read = read_recorded(tmp_path)
    assert isinstance(read, RecordedEvaluation)
    assert read.best_of == result
    write_json(tmp_path / METRICS_FILE, {**recorded, "best_of": {**stored, "curve": None}})
    with pytest.raises(DataError, match=r"metrics\.json is damaged: best_of\.curve"):
        read_recorded(tmp_path)


def test_a_proxy_that_is_wrong_at_the_top_is_over_optimised() -> None:
    """The proxy knows gold, except that the worst response of each prompt gets the highest."""
    generator = np.random.default_rng(1)
    grades = np.sort(generator.normal(size=(80, 12)), axis=1)
    rewards = grades.copy()
    rewards[:, 0] = 99.0
    result = best_of_n(table_of(rewards, grades))
    assert result.over_optimised
    assert 1 < result.peak_n < 12
    assert "Over-optimised: the grade peaks at n = " in result.sentence
    proxies = [point.proxy for point in result.curve]
    assert proxies == sorted(proxies)
    assert result.fit is not None
    assert result.fit.beta > 0


def test_every_n_is_over_the_same_prompts() -> None:
    generator = np.random.default_rng(2)
    rewards, grades = generator.normal(size=(2, 9, 6))
    rewards[0, 4:] = np.nan  # four responses
    rewards[1, 2:] = np.nan  # a pair: no choice
    result = best_of_n(table_of(rewards, grades))
    assert (result.prompts, result.left_out, result.largest_n) == (7, 2, 6)


def test_pairs_are_no_choice() -> None:
    pairs = np.zeros((5, 2))
    with pytest.raises(
        DataError, match="at least 3 graded responses, and none of the 5 prompts has"
    ):
        best_of_n(table_of(pairs, pairs))


# ---- the ranked documentation --------------------------------------------------------------------


def test_ranked_documentation_has_answers_of_known_quality() -> None:
    rows = build_ranked(12, 42)
    assert rows == build_ranked(20, 42)[:12]
    assert rows != build_ranked(12, 7)
    for row in rows:
        assert len(row["responses"]) == len(set(row["responses"])) == RESPONSES
        assert sorted(set(row["grades"])) == [-float(n) for n in range(MAX_DEGRADATIONS, -1, -1)]
        assert row["grades"].count(0) == 1
    loaded = load_comparisons([Source(path="documentation:ranked:12")], seed=0)
    assert loaded.tally.used == 12
    assert loaded.sources[0].fingerprint.endswith("/ranked/12/42")


def test_more_than_there_is() -> None:
    with pytest.raises(DataError, match="the held-out documentation has 1 to"):
        load_comparisons([Source(path="documentation:ranked:99999")], seed=0)


def test_the_picture(tmp_path: Path) -> None:
    from plaudit.report.comparison import best_of_figure
    from plaudit.report.plots import save_figure

    grades = np.random.default_rng(0).normal(size=(10, 4))
    save_figure(best_of_figure(best_of_n(table_of(grades, grades))), tmp_path / "best.png")
    assert (tmp_path / "best.png").read_bytes().startswith(b"\x89PNG")
