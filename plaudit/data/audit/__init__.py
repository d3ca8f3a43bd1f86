"""Looking over preference data: a table of checks (``checks.py``), and a cleaned copy (``fix.py``).

Rows are read once into a file (``rows.py``), measured into arrays of numbers (``columns.py``), and
judged by checks that read those arrays alone, so that a million rows fit into memory. What other
stages know (tokens, scripts, baselines) comes in as functions (``tools.py``).
"""
