"""Handing a reward model on: export, weight averaging, the Hub. Each ends with a check."""
