"""Losses by family: pure functions that return a sum, and their table."""
