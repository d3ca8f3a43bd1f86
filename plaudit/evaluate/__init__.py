"""Scores against known order: tables, metrics with intervals, calibration, baselines, facts."""

from plaudit.callable_package import make_callable

make_callable(__name__, "evaluate")
