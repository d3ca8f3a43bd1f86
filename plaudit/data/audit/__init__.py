"""The audit of preference data: a table of checks, and a cleaned copy.

Rows are read once into an Arrow file and measured into arrays of numbers (``measure.py``), among
them sketches for near duplicates (``similarity.py``). Checks (``checks.py``) read those arrays
alone, so that a million rows fit into memory. ``run.py`` puts it together, ``fix.py`` writes the
cleaned copy.
"""
