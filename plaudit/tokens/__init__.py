"""Comparisons to packed batches: chat rendering, encoding, truncation policy, packing."""
