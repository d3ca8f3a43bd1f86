"""Where experiment trackers (``train.report_to``) write their files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from plaudit.training.folder import RunFolder

FOLDERS = {
    "tensorboard": ("TENSORBOARD_LOGGING_DIR", "tensorboard"),
    # It adds a folder of its own name.
    "wandb": ("WANDB_DIR", "."),
    "swanlab": ("SWANLAB_LOG_DIR", "swanlab"),
}
"""Tracker to the variable that it reads and its place in the run's ``logs``.

By themselves they write beside the checkpoints, which may be deleted after training, or into the
current folder.
"""


@contextmanager
def logging_into(folder: RunFolder, trackers: Sequence[str]) -> Iterator[None]:
    """Trackers of this run write into its ``logs``, unless the user has set their variable."""
    ours = {}
    for tracker in trackers:
        variable, place = FOLDERS.get(tracker, ("", ""))
        if variable and variable not in os.environ:
            ours[variable] = folder.logs / place
    for path in ours.values():
        # wandb takes a temporary folder where its own does not exist.
        path.mkdir(parents=True, exist_ok=True)
    os.environ.update({variable: str(path.resolve()) for variable, path in ours.items()})
    try:
        yield
    finally:
        for variable in ours:
            os.environ.pop(variable, None)
