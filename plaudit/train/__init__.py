"""Training: a thin transformers.Trainer subclass; ``run.py`` reads top to bottom."""

from plaudit.callable_package import make_callable

make_callable(__name__, "train")
