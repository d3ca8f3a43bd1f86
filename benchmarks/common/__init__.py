"""What the benchmark commands share: the machine, models, rows, sides, results, plots."""
