"""Which objective for which labels: objectives on the same rows and seeds, with paired tests."""
