"""Rows to comparisons: files and Hub datasets, readers, counting, splits. Loads no torch."""
