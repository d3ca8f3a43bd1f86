"""What reading another tool's model asks for and gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from plaudit.model.checkpoint import ArtefactFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What a model's files may leave open, and its owner knows.

    ``era`` is the version that trained it: LLaMA-Factory's for its own folders, transformers' for
    sequence classifiers. ``template`` is LLaMA-Factory's template. ``output`` is the number of the
    output that is the reward. ``text`` is what it was trained on. Without ``normalize`` a mean and
    a standard deviation beside the weights are left out.
    """

    era: str | None = None
    template: str | None = None
    output: int | None = None
    text: Literal["chat", "text"] | None = None
    normalize: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Which folder to read, as the user named it, and how."""

    folder: Path
    source: str
    base: str | None = None
    trust_remote_code: bool = False
    choices: Choices = Choices()


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A recognised reward model: facts and tokenizer now, weights when ``build`` is called.

    ``build`` gives a transformers sequence classifier with one output, a PEFT adapter around it
    where there is one.
    """

    facts: ArtefactFacts
    tokenizer: PreTrainedTokenizerBase
    build: Callable[[torch.dtype], nn.Module]
