"""Losses by family, each a pure function that returns (sum, count), and their table."""
