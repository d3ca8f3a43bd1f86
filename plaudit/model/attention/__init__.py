"""Attention over the packed layout: the registered interface and one file per backend."""
