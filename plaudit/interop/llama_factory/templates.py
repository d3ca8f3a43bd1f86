"""LLaMA-Factory's conversation templates by release, and how they render.

A model's files name neither template nor release, and the same name meant other text in another
release. The rules are those of the released packages 0.8.2, 0.8.3, 0.9.1, 0.9.2, 0.9.3, 0.9.4 and
0.9.5 (``llamafactory/data/template.py``). To add a template, add rows to :data:`TEMPLATES`.

A template is slots of text, filled turn by turn and encoded one by one. ``plaudit.json`` keeps its
strings: ``prefix``, ``system``, ``user``, ``assistant`` and ``separator`` are lists of slots;
``default_system`` stands where a conversation has no system text; ``system_in_user`` joins that
text to the first question; ``end`` adds the end token to the last answer; ``thought`` is what opens
and what closes a thought, and the empty one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from plaudit.errors import ModelError
from plaudit.interop.reading import release
from plaudit.tokens.rendering import (
    ChatFormatter,
    NamedTemplate,
    Rendered,
    Renderer,
    by_chat_template,
)
from plaudit.types import Comparison, Rendering, ScoredTokenRule, Turns

CONTENT = "{{content}}"
BOS = "{{bos}}"
EOS = "{{eos}}"
KIND = "llamafactory"
"""The kind of rendering, as ``plaudit.json`` records it."""
NEWEST = "0.9.5"

RULE_VERSIONS = ("0.8.2", "0.8.3", "0.9.2", "0.9.3", "0.9.4")
"""Releases at which the text or the read position changed; each stands up to the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A template as one release had it, from ``since`` on until another row of its name.

    ``eos`` is the token it makes the tokenizer's end token, None where it leaves that alone. The
    other fields are the strings that ``plaudit.json`` keeps.
    """

    name: str
    since: str
    eos: str | None = None
    prefix: tuple[str, ...] = ()
    system: tuple[str, ...] = (CONTENT,)
    user: tuple[str, ...]
    assistant: tuple[str, ...] = (CONTENT, EOS)
    separator: tuple[str, ...] = ()
    default_system: str = ""
    system_in_user: bool = False
    end: bool = False
    thought: tuple[str, str, str] | None = None

    def strings(self) -> dict[str, Any]:
        """What rendering needs, as ``plaudit.json`` keeps it."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if name not in ("name", "since", "eos")
        }


_CHATML = Template(
    name="chatml",
    since="0.9.2",
    eos="<|im_end|>",
    system=(f"<|im_start|>system\n{CONTENT}<|im_end|>\n",),
    user=(f"<|im_start|>user\n{CONTENT}<|im_end|>\n<|im_start|>assistant\n",),
    assistant=(f"{CONTENT}<|im_end|>\n",),
)
# Until 0.9.1 a turn's newline was a piece of its own, and the last answer had none.
_EARLY_CHATML = replace(_CHATML, since="0.8.2", assistant=(CONTENT, EOS), separator=("\n",))
_GEMMA = Template(
    name="gemma",
    since="0.9.2",
    prefix=(BOS,),
    user=(f"<start_of_turn>user\n{CONTENT}<end_of_turn>\n<start_of_turn>model\n",),
    assistant=(f"{CONTENT}<end_of_turn>\n",),
)
_ASSISTANT_OPENS = "<|start_header_id|>assistant<|end_header_id|>\n\n"
_LLAMA3 = Template(
    name="llama3",
    since="0.9.2",
    prefix=(BOS,),
    system=(f"<|start_header_id|>system<|end_header_id|>\n\n{CONTENT}<|eot_id|>",),
    user=(f"<|start_header_id|>user<|end_header_id|>\n\n{CONTENT}<|eot_id|>{_ASSISTANT_OPENS}",),
    assistant=(f"{CONTENT}<|eot_id|>",),
)
_DEFAULT = Template(
    name="default",
    since="0.8.3",
    system=(f"{CONTENT}\n",),
    user=(f"Human: {CONTENT}\nAssistant:",),
    separator=("\n",),
)
_SYSTEM_FIRST: dict[str, Any] = {"system": (f"{CONTENT}\n\n",), "system_in_user": True}
_QWEN_LONG = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
_QWEN_SHORT = "You are a helpful assistant."
_QWEN3 = replace(_CHATML, name="qwen3", since="0.9.4")
_EMPTY_THOUGHT = "<think>\n\n</think>\n\n"

TEMPLATES: tuple[Template, ...] = (
    replace(_DEFAULT, since="0.8.2", user=(f"Human: {CONTENT}\nAssistant: ",)),
    _DEFAULT,
    Template(
        name="default",
        since="0.9.2",
        system=(f"System: {CONTENT}\n",),
        user=(f"Human: {CONTENT}\nAssistant:",),
        assistant=(CONTENT, EOS, "\n"),
    ),
    Template(
        name="default",
        since="0.9.3",
        system=(f"System: {CONTENT}", EOS, "\n"),
        user=(f"Human: {CONTENT}", EOS, "\nAssistant:"),
        assistant=(CONTENT, EOS, "\n"),
    ),
    replace(_LLAMA3, since="0.8.2", assistant=(CONTENT, EOS), eos="<|eot_id|>"),
    _LLAMA3,
    replace(_LLAMA3, since="0.9.3", eos="<|eot_id|>"),
    _EARLY_CHATML,
    _CHATML,
    replace(_EARLY_CHATML, name="qwen", default_system=_QWEN_SHORT),
    replace(_CHATML, name="qwen", default_system=_QWEN_SHORT, eos=None),
    replace(_CHATML, name="qwen", since="0.9.3", default_system=_QWEN_LONG),
    replace(_QWEN3, since="0.9.3", thought=("<think>", "</think>", _EMPTY_THOUGHT)),
    replace(_QWEN3, thought=("<think>\n", "\n</think>\n\n", _EMPTY_THOUGHT)),
    replace(_QWEN3, name="qwen3_nothink"),
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
    replace(_GEMMA, since="0.8.2", assistant=(CONTENT,), separator=("<end_of_turn>\n",), end=True),
    _GEMMA,
    replace(_GEMMA, since="0.9.3", eos="<end_of_turn>", **_SYSTEM_FIRST),
    replace(_GEMMA, name="gemma2", since="0.9.4", end=True, **_SYSTEM_FIRST),
    replace(_GEMMA, name="gemma3", since="0.9.3", eos="<end_of_turn>", **_SYSTEM_FIRST),
)

NAMES = tuple(dict.fromkeys(template.name for template in TEMPLATES))


def rule_version(version: str) -> str:
    """The release of :data:`RULE_VERSIONS` whose rules hold for a version."""
    known = [known for known in RULE_VERSIONS if release(known) <= release(version)]
    return known[-1] if known else RULE_VERSIONS[0]


def template_of(name: str, version: str) -> Template:
    """The template as a release had it.

    Raises:
        ModelError: no template of that name, or none yet then.
    """
    rows = [template for template in TEMPLATES if template.name == name]
    if not rows:
        raise ModelError(
            f"unknown template {name}; expected one of {', '.join(NAMES)}: the value of the"
            " template key in the LLaMA-Factory run."
        )
    known = [row for row in rows if release(row.since) <= release(version)]
    if not known:
        raise ModelError(
            f"LLaMA-Factory {version} has no template {name} (added in {rows[0].since}); set"
            " --source-version to the release that trained the model, or choose another"
            " template."
        )
    return known[-1]


def writes_alike(name: str, version: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a template writes a conversation as the tokenizer's own chat template does.

    A newline at the very end may differ.
    """
    if not isinstance(tokenizer.chat_template, str):
        return False
    turns = ("one\ntwo", "three", "four", "five, six")
    messages = [
        {"role": ("user", "assistant")[number % 2], "content": content}
        for number, content in enumerate(turns)
    ]
    try:
        rendered = str(tokenizer.apply_chat_template(messages, tokenize=False))
        template = template_of(name, version)
    except (ModelError, TemplateError, TypeError, LookupError, ValueError):
        # The tokenizer's template rejects these turns, or that release had none of this name.
        return False
    tokens = {BOS: tokenizer.bos_token, EOS: template.eos or tokenizer.eos_token}
    pieces = fill(template.strings(), "", turns)
    text = "".join(str(tokens[piece] or "") if piece in tokens else piece for piece in pieces)
    return text.rstrip("\n") == rendered.rstrip("\n")


# ---- rendering ----------------------------------------------------------------------------------


def fill(strings: Mapping[str, Any], system: str, turns: Sequence[str]) -> tuple[str, ...]:
    """The pieces of a conversation of alternating turns, the user's first.

    :data:`BOS` and :data:`EOS` stand for the tokens. Byte-pair merges never reach across pieces.
    """
    system = system or strings["default_system"]
    pieces: list[str] = []
    for number, (content, thought) in enumerate(_with_thoughts(strings["thought"], turns)):
        asks = number % 2 == 0
        if number == 0:
            pieces += strings["prefix"]
            if system and strings["system_in_user"]:
                content = strings["system"][0].replace(CONTENT, system, 1) + content
            elif system:
                pieces += _filled(strings["system"], system)
        elif asks:
            pieces += strings["separator"]
        pieces.append(thought)
        pieces += _filled(strings["user" if asks else "assistant"], content)
    if strings["end"] and len(turns) % 2 == 0:
        pieces.append(EOS)
    return tuple(piece for piece in pieces if piece)


def _filled(slots: Sequence[str], content: str) -> list[str]:
    return [slot.replace(CONTENT, content, 1) for slot in slots]


def _with_thoughts(thought: Sequence[str] | None, turns: Sequence[str]) -> list[tuple[str, str]]:
    """Contents of the turns, each with what is put before it.

    In a template with thoughts, earlier answers lose theirs and a last answer without one gets the
    empty one.
    """
    if thought is None or len(turns) % 2:
        return [(content, "") for content in turns]
    opens, closes, empty = thought
    between = re.compile(f"{re.escape(opens)}(.*?){re.escape(closes)}", re.DOTALL)
    *earlier, answer = turns
    texts = [
        between.sub("", content).lstrip("\n") if number % 2 else content
        for number, content in enumerate(earlier)
    ]
    thinks = opens.strip() in answer or closes.strip() in answer
    return [*((content, "") for content in texts), (answer, "" if thinks else empty)]


_JINJA = """\
{%- set t = STRINGS -%}
{%- set ns = namespace(system=t.default_system, first=0) -%}
{%- if messages and messages[0]['role'] == 'system' -%}
{%- set ns.system = messages[0]['content'] or ns.system -%}{%- set ns.first = 1 -%}
{%- endif -%}
{%- for message in messages[ns.first:] -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('turns must alternate user and assistant, the user first') -}}
{%- endif -%}
{%- set system = t.before_system + ns.system + t.after_system if ns.system else '' -%}
{%- if loop.index0 == 0 -%}
{{- t.prefix -}}{%- if not t.system_in_user -%}{{- system -}}{%- endif -%}
{{- t.before_user -}}{%- if t.system_in_user -%}{{- system -}}{%- endif -%}
{{- message['content'] -}}{{- t.after_user -}}
{%- elif loop.index0 % 2 == 0 -%}
{{- t.separator -}}{{- t.before_user -}}{{- message['content'] -}}{{- t.after_user -}}
{%- else -%}
{{- t.before_assistant -}}{{- message['content'] -}}
{%- if loop.last -%}{{- t.last -}}{%- else -%}{{- t.after_assistant -}}{%- endif -%}
{%- endif -%}
{%- endfor -%}"""


def chat_template_of(
    rendering: Rendering, scored_token: ScoredTokenRule, tokenizer: PreTrainedTokenizerBase
) -> str | None:
    """The template as Jinja; None for one with thoughts, which say more than text can.

    A model that scores the token before a trailing end token gets a template that leaves that
    token off the last answer, so that its end is what is scored everywhere.
    """
    strings = rendering.strings
    if strings["thought"] is not None:
        return None

    def text(slots: Sequence[str]) -> str:
        joined = "".join(slots)
        return joined.replace(BOS, str(tokenizer.bos_token or "")).replace(
            EOS, str(tokenizer.eos_token or "")
        )

    parts: dict[str, Any] = {
        "default_system": strings["default_system"],
        "system_in_user": strings["system_in_user"],
        "prefix": text(strings["prefix"]),
        "separator": text(strings["separator"]),
    }
    for role in ("system", "user", "assistant"):
        before, _, after = text(strings[role]).partition(CONTENT)
        parts |= {f"before_{role}": before, f"after_{role}": after}
    last = parts["after_assistant"] + (text([EOS]) if strings["end"] else "")
    if scored_token.rule != "last":
        pad = str(tokenizer.convert_ids_to_tokens(scored_token.pad_id or 0))
        while pad and last.endswith(pad):
            last = last.removesuffix(pad)
    # JSON of texts and truth values is Jinja, too.
    return _JINJA.replace("STRINGS", json.dumps({**parts, "last": last}, ensure_ascii=False), 1)


def by_llamafactory(formatter: ChatFormatter, comparison: Comparison, response: Turns) -> Rendered:
    """LLaMA-Factory's own template, each piece of each turn encoded on its own.

    Byte-pair merges never reach across its pieces, so the ids differ from those of the same text
    encoded at once. Plain text stands as it is.

    Raises:
        ValueError: tools, turns that do not alternate, or of another role; LLaMA-Factory drops such
            rows.
        TypeError: a content that is not text.
    """
    if isinstance(comparison.prompt, str) or isinstance(response, str):
        return by_chat_template(formatter, comparison, response)
    if comparison.tools:
        raise ValueError("LLaMA-Factory's templates are rendered without tools")
    messages = (*comparison.prompt, *response)
    system: Any = ""
    if messages and messages[0].role == "system":
        system, messages = messages[0].content, messages[1:]
    for number, message in enumerate(messages):
        expected = ("user", "assistant")[number % 2]
        if message.role != expected or message.extra:
            raise ValueError(
                f"turn {number + 1} is {message.role}; LLaMA-Factory's templates alternate user"
                " and assistant turns after at most one system message, without tool calls"
            )
    turns = [message.content for message in messages]
    if not all(isinstance(content, str) for content in (system, *turns)):
        raise TypeError("a message's content is not text")
    tokens = {BOS: formatter.tokenizer.bos_token_id, EOS: formatter.tokenizer.eos_token_id}
    pieces = [
        tokens.get(piece, piece) for piece in fill(formatter.rendering.strings, system, turns)
    ]
    # A tokenizer without a start token has none to write.
    return Rendered(pieces=tuple(p for p in pieces if p is not None), ending="exact")


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
    template = template_of(name, rule_version(release or NEWEST))
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
