"""Metrics of scores with known order, each with its interval."""
