"""What reading another tool's model asks for and gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from plaudit.model.checkpoint import ArtefactFacts
from plaudit.types import Affine, Comparison

if TYPE_CHECKING:
    from plaudit.interop.shared import Contents


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A row: what it is called, whether a folder is of it, and how it is opened."""

    name: str
    recognises: Callable[[Contents], bool]
    opens: Callable[[Contents, Request], Opened]


Ids: TypeAlias = Sequence[int]
"""One encoded conversation, up to the token that is scored."""

Scorer: TypeAlias = Callable[[Sequence[Ids]], list[float]]
"""A reloaded model: one score per conversation, by the rules of the tool it was written for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How an export is written.

    ``dtype`` is that of every tensor but the head, which stays fp32. ``peft_config`` names the PEFT
    release that must read ``adapter_config.json``, None for the installed one. ``normalize`` asks
    for (reward - mean) / std of the evaluation rewards where the layout can say so.
    """

    dtype: torch.dtype = torch.float32
    max_shard_size: str = "5GB"
    peft_config: str | None = None
    normalize: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Exportable:
    """A reward model as it will be written: fp32, its values those that ``dtype`` can hold.

    ``network`` is PEFT's wrapper or the classifier alone. The scale of an imported model is folded
    into its head; ``offset`` is what its reward has on top of the head's output and its own bias.
    ``base`` is where an adapter's base is loaded from, and ``base_named`` what the written files
    call it.
    """

    network: Any
    tokenizer: PreTrainedTokenizerBase
    facts: ArtefactFacts
    base: str
    base_named: str
    offset: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What became of the reward: the tool's score is ``gives.scale * reward + gives.offset``.

    ``notes`` are sentences about what the layout could not hold, ``serving`` options that a server
    must be given for it.
    """

    gives: Affine = field(default_factory=Affine)
    notes: tuple[str, ...] = ()
    serving: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exporter:
    """An exporter, found in the registry by the name that ``--to`` takes.

    ``layout`` says whether LoRA is merged (``whole``), must be there (``adapter``) or is written as
    it comes (``either``). ``read`` reloads the folder by the tool's own rules, given where the base
    of an adapter is. ``encode`` is how the tool makes tokens of a comparison with the written
    tokenizer, one conversation per response; None where its template is chosen elsewhere.
    ``usage`` says in Markdown how the tool is given the folder (``KIND`` stands for lora or full),
    ``plain`` whether transformers loads it too, and ``served`` whether vLLM does.
    ``exact_text`` holds where that must give plaudit's own tokens. ``own_facts`` says whether
    ``plaudit.json`` lies beside the weights.
    """

    help: str
    layout: str
    write: Callable[[Exportable, Path, Options], Written]
    read: Callable[[Path, str], Scorer]
    encode: Callable[[PreTrainedTokenizerBase, ArtefactFacts, Comparison], list[list[int]]] | None
    exact_text: bool = True
    decoders_only: bool = False
    own_facts: bool = True
    usage: str = ""
    plain: bool = True
    served: bool = False
