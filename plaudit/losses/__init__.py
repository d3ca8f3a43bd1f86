"""Training losses by family: pure functions of scores and labels, summed with a count."""
