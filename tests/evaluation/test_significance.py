"""p-values equal statsmodels, and hold their rate where nothing is to be found."""

from __future__ import annotations

import math

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportions_ztest

from plaudit.evaluation.metrics.pairwise import paired_difference
from plaudit.evaluation.metrics.significance import (
    against_the_rest,
    benjamini_hochberg,
    clustered_p,
    holm,
    mcnemar,
)

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=30)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
@example(300, 351)
def test_mcnemar_equals_statsmodels(only_a, only_b):
    expected = reference_mcnemar([[3, only_a], [only_b, 5]], exact=True).pvalue
    assert mcnemar(only_a, only_b) == pytest.approx(min(expected, 1.0), rel=1e-9)


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(P_VALUES)
def test_corrections_equal_statsmodels(p_values):
    for adjust, method in ((holm, "holm"), (benjamini_hochberg, "fdr_bh")):
        expected = multipletests(p_values, method=method)[1]
        assert adjust(p_values) == pytest.approx(expected, abs=1e-12)


def test_what_was_not_tested_is_not_corrected():
    assert holm([None, 0.01, None, 0.04]) == [None, 0.02, None, 0.04]
    assert benjamini_hochberg([0.04, None, 0.02]) == [0.04, None, 0.04]
    assert benjamini_hochberg([]) == holm([]) == []


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-3, 3).map(lambda value: round(value, 3)), st.integers(0, 9)),
        min_size=2,
        max_size=40,
    )
)
def test_clustered_p_equals_statsmodels(inputs):
    difference_P = np.array([value for value, _ in inputs])
    group_P = np.array([group for _, group in inputs])
    found = paired_difference(np.zeros(len(inputs)), difference_P, group_P)
    p = clustered_p(found)
    if found.groups < 2:
        assert p is None
        return
    fitted = sm.OLS(difference_P, np.ones(len(inputs))).fit(
        cov_type="cluster", cov_kwds={"groups": group_P}, use_t=True
    )
    if found.standard_error > 1e-9:
        assert p == pytest.approx(fitted.pvalues[0], abs=1e-7)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 12)), min_size=4, max_size=60)
)
def test_a_slice_is_tested_by_the_larger_of_two_variances(rows):
    right_P, inside_P = (np.array([row[at] for row in rows]) for at in (0, 1))
    group_P = np.array([row[2] for row in rows])
    p = against_the_rest(right_P, inside_P, group_P)
    if inside_P.all() or not inside_P.any():
        assert p is None
        return
    if right_P.all() or not right_P.any():
        assert p == 1.0
        return
    counts = [right_P[inside_P].sum(), right_P[~inside_P].sum()]
    _, independent = proportions_ztest(counts, [inside_P.sum(), (~inside_P).sum()])
    # The variance by group, pair by pair, as its definition has it.
    share = right_P.mean()
    weights = [1 / inside_P.sum() if inside else -1 / (~inside_P).sum() for inside in inside_P]
    terms = [w * (right - share) for w, right in zip(weights, right_P, strict=True)]
    clustered = sum(
        first * second
        for first, one in zip(terms, group_P, strict=True)
        for second, other in zip(terms, group_P, strict=True)
        if one == other
    )
    difference = right_P[inside_P].mean() - right_P[~inside_P].mean()
    by_group = (
        2 * stats.norm.sf(abs(difference) / math.sqrt(clustered)) if clustered > 1e-12 else 0.0
    )
    assert p == pytest.approx(max(independent, by_group), abs=1e-9)


@pytest.mark.parametrize("shared", [0.0, 2.0])
def test_no_more_findings_than_stated_where_there_are_none(shared):
    """Slices of 40 of 400 pairs, four pairs a prompt, whose answers may go together."""
    generator = np.random.default_rng(5)
    group_P = np.arange(400) // 4
    false = 0
    for _ in range(400):
        of_prompt = np.repeat(generator.normal(0, shared, 100), 4)
        right_P = of_prompt + generator.normal(0.7, 1, 400) > 0
        inside_P = np.isin(group_P, generator.choice(100, 10, replace=False))
        false += against_the_rest(right_P, inside_P, group_P) < 0.05
    # 400 draws at 0.05: 20 expected, 37 or more in one of ten thousand.
    assert false <= 36
