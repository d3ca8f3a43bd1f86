"""Whole files or none, their checksums, Arrow files, the cache, worker processes."""
