"""Scores against known order: tables, metrics with intervals, calibration, baselines."""
