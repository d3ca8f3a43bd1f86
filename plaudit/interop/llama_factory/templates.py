"""The conversation templates that LLaMA-Factory's reward models were trained with, by release.

A model's files name neither template nor release, and the same name meant other text in another
release. The facts are those of the released packages 0.8.2, 0.8.3, 0.9.1, 0.9.2, 0.9.3, 0.9.4 and
0.9.5 (``llamafactory/data/template.py``). To add a template, add rows to :data:`TEMPLATES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from plaudit.errors import ModelError
from plaudit.interop.llama_factory.rendering import (
    BOS,
    CONTENT,
    EOS,
    by_llamafactory,
    chat_template_of,
    fill,
)
from plaudit.interop.shared import release
from plaudit.tokens.rendering import NamedTemplate, Renderer
from plaudit.types import Rendering

KIND = "llamafactory"
"""The kind of rendering, as ``plaudit.json`` records it."""
NEWEST = "0.9.5"

ERAS = ("0.8.2", "0.8.3", "0.9.2", "0.9.3", "0.9.4")
"""Releases at which the text or the read position changed; each stands up to the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A template as one release had it, from ``since`` on until another row of its name.

    ``eos`` is the token it makes the tokenizer's end token, None where it leaves that alone. The
    other fields are those of :mod:`plaudit.interop.llama_factory.rendering`.
    """

    name: str
    since: str
    user: tuple[str, ...]
    assistant: tuple[str, ...] = (CONTENT, EOS)
    system: tuple[str, ...] = (CONTENT,)
    prefix: tuple[str, ...] = ()
    separator: tuple[str, ...] = ()
    default_system: str = ""
    system_in_user: bool = False
    end: bool = False
    thought: tuple[str, str, str] | None = None
    eos: str | None = None

    def strings(self) -> dict[str, Any]:
        """What rendering needs, as ``plaudit.json`` keeps it."""
        return {
            "prefix": list(self.prefix),
            "system": list(self.system),
            "user": list(self.user),
            "assistant": list(self.assistant),
            "separator": list(self.separator),
            "default_system": self.default_system,
            "system_in_user": self.system_in_user,
            "end": self.end,
            "thought": None if self.thought is None else list(self.thought),
        }


def _chatml(name: str, since: str, **more: Any) -> Template:
    """ChatML: until 0.9.1 a turn's newline was a piece of its own, and the last answer had none."""
    early = release(since) < release("0.9.2")
    turns: dict[str, Any] = {
        "user": (f"<|im_start|>user\n{CONTENT}<|im_end|>\n<|im_start|>assistant\n",),
        "system": (f"<|im_start|>system\n{CONTENT}<|im_end|>\n",),
        "assistant": (CONTENT, EOS) if early else (f"{CONTENT}<|im_end|>\n",),
        "separator": ("\n",) if early else (),
        "eos": "<|im_end|>",
    }
    return Template(name=name, since=since, **{**turns, **more})


def _gemma(name: str, since: str, **more: Any) -> Template:
    turns: dict[str, Any] = {
        "prefix": (BOS,),
        "user": (f"<start_of_turn>user\n{CONTENT}<end_of_turn>\n<start_of_turn>model\n",),
        "assistant": (f"{CONTENT}<end_of_turn>\n",),
    }
    return Template(name=name, since=since, **{**turns, **more})


def _llama3(since: str, **more: Any) -> Template:
    def opens(role: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n"

    turns: dict[str, Any] = {
        "prefix": (BOS,),
        "user": (f"{opens('user')}{CONTENT}<|eot_id|>{opens('assistant')}",),
        "system": (f"{opens('system')}{CONTENT}<|eot_id|>",),
        "assistant": (f"{CONTENT}<|eot_id|>",),
    }
    return Template(name="llama3", since=since, **{**turns, **more})


_SYSTEM_FIRST: dict[str, Any] = {"system": (f"{CONTENT}\n\n",), "system_in_user": True}
_QWEN_LONG = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
_QWEN_SHORT = "You are a helpful assistant."
_EMPTY_THOUGHT = "<think>\n\n</think>\n\n"

TEMPLATES: tuple[Template, ...] = (
    Template(
        name="default",
        since="0.8.2",
        user=(f"Human: {CONTENT}\nAssistant: ",),
        system=(f"{CONTENT}\n",),
        separator=("\n",),
    ),
    Template(
        name="default",
        since="0.8.3",
        user=(f"Human: {CONTENT}\nAssistant:",),
        system=(f"{CONTENT}\n",),
        separator=("\n",),
    ),
    Template(
        name="default",
        since="0.9.2",
        user=(f"Human: {CONTENT}\nAssistant:",),
        assistant=(CONTENT, EOS, "\n"),
        system=(f"System: {CONTENT}\n",),
    ),
    Template(
        name="default",
        since="0.9.3",
        user=(f"Human: {CONTENT}", EOS, "\nAssistant:"),
        assistant=(CONTENT, EOS, "\n"),
        system=(f"System: {CONTENT}", EOS, "\n"),
    ),
    _llama3("0.8.2", assistant=(CONTENT, EOS), eos="<|eot_id|>"),
    _llama3("0.9.2"),
    _llama3("0.9.3", eos="<|eot_id|>"),
    _chatml("chatml", "0.8.2"),
    _chatml("chatml", "0.9.2"),
    _chatml("qwen", "0.8.2", default_system=_QWEN_SHORT),
    _chatml("qwen", "0.9.2", default_system=_QWEN_SHORT, eos=None),
    _chatml("qwen", "0.9.3", default_system=_QWEN_LONG),
    _chatml("qwen3", "0.9.3", thought=("<think>", "</think>", _EMPTY_THOUGHT)),
    _chatml("qwen3", "0.9.4", thought=("<think>\n", "\n</think>\n\n", _EMPTY_THOUGHT)),
    _chatml("qwen3_nothink", "0.9.4"),
    Template(
        name="mistral",
        since="0.8.2",
        prefix=(BOS,),
        user=(f"[INST] {CONTENT} [/INST]",),
    ),
    Template(
        name="mistral",
        since="0.9.2",
        prefix=(BOS,),
        user=(f"[INST] {CONTENT}[/INST]",),
        assistant=(f" {CONTENT}", EOS),
        **_SYSTEM_FIRST,
    ),
    Template(
        name="ministral",
        since="0.9.2",
        prefix=(BOS,),
        user=(f"[INST]{CONTENT}[/INST]",),
        **_SYSTEM_FIRST,
    ),
    _gemma("gemma", "0.8.2", assistant=(CONTENT,), separator=("<end_of_turn>\n",), end=True),
    _gemma("gemma", "0.9.2"),
    _gemma("gemma", "0.9.3", **_SYSTEM_FIRST, eos="<end_of_turn>"),
    _gemma("gemma2", "0.9.4", **_SYSTEM_FIRST, end=True),
    _gemma("gemma3", "0.9.3", **_SYSTEM_FIRST, eos="<end_of_turn>"),
)

NAMES = tuple(dict.fromkeys(template.name for template in TEMPLATES))


def era_of(version: str) -> str:
    """The era that a release belongs to: the newest one that is not newer."""
    asked = release(version)
    return max((era for era in ERAS if release(era) <= asked), key=release, default=ERAS[0])


def template_of(name: str, era: str) -> Template:
    """The template as that era's releases had it.

    Raises:
        ModelError: no template of that name, or none yet then.
    """
    rows = [template for template in TEMPLATES if template.name == name]
    if not rows:
        raise ModelError(
            f"the template {name} is not known; expected one of {', '.join(NAMES)}, as the "
            "template key of the LLaMA-Factory run said."
        )
    known = [row for row in rows if release(row.since) <= release(era)]
    if not known:
        raise ModelError(
            f"LLaMA-Factory {era} had no template {name} (it came with {rows[0].since}); name "
            "the version that trained the model with --era, or another template."
        )
    return known[-1]


_PROBE = ("one\ntwo", "three", "four", "five, six")


def written_alike(template: Template, rendered: str, tokens: Mapping[str, str | None]) -> bool:
    """Whether the template writes ``rendered``, the text of :func:`probe_messages`.

    ``tokens`` are the start and end token. A newline at the very end may differ.
    """
    pieces = fill(template.strings(), "", _PROBE)
    text = "".join((tokens[piece] or "") if piece in tokens else piece for piece in pieces)
    return text.rstrip("\n") == rendered.rstrip("\n")


def probe_messages() -> list[dict[str, str]]:
    """A conversation by which templates are told apart."""
    return [
        {"role": ("user", "assistant")[number % 2], "content": content}
        for number, content in enumerate(_PROBE)
    ]


def as_trained(tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
    """End and padding token as the trainer set them before it encoded anything."""
    if template.eos is not None and template.eos in tokenizer.get_vocab():
        tokenizer.eos_token = template.eos
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def _named(name: str, release: str | None) -> NamedTemplate:
    """The template as its release had it.

    Raises:
        ModelError: there is none of that name, or none yet then.
    """
    template = template_of(name, era_of(release or NEWEST))
    return NamedTemplate(
        rendering=Rendering(kind=KIND, template=template.name, strings=template.strings()),
        prepare=lambda tokenizer: as_trained(tokenizer, template),
    )


RENDERER = Renderer(
    render=by_llamafactory,
    needs_chat_template=False,
    template=_named,
    as_jinja=chat_template_of,
)
