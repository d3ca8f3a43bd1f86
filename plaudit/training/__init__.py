"""Training: a thin transformers.Trainer subclass; ``run.py`` reads top to bottom."""
