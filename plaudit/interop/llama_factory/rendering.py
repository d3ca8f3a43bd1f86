"""How LLaMA-Factory renders: slots of text, filled turn by turn and encoded one by one.

The strings of a template, as ``plaudit.json`` keeps them: ``prefix``, ``system``, ``user``,
``assistant`` and ``separator`` are lists of slots; ``default_system`` stands where a conversation
has no system text; ``system_in_user`` joins that text to the first question; ``end`` adds the end
token to the last answer; ``thought`` is what opens and what closes a thought, and the empty one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from plaudit.tokens.rendering import Rendered, Voice, by_chat_template
from plaudit.types import Comparison, Message, Reading, Rendering, Turns

CONTENT = "{{content}}"
BOS = "{{bos}}"
EOS = "{{eos}}"


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
    shown = [
        between.sub("", content).lstrip("\n") if number % 2 else content
        for number, content in enumerate(earlier)
    ]
    thinks = opens.strip() in answer or closes.strip() in answer
    return [*((content, "") for content in shown), (answer, "" if thinks else empty)]


_JINJA = """\
{%- set ns = namespace(system=@default_system, first=0) -%}
{%- if messages and messages[0]['role'] == 'system' -%}
{%- set ns.system = messages[0]['content'] or ns.system -%}{%- set ns.first = 1 -%}
{%- endif -%}
{%- for message in messages[ns.first:] -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('turns must alternate user and assistant, the user first') -}}
{%- endif -%}
{%- set system = @before_system + ns.system + @after_system if ns.system else '' -%}
{%- if loop.index0 == 0 -%}
{{- @prefix -}}{%- if not @system_in_user -%}{{- system -}}{%- endif -%}
{{- @before_user -}}{%- if @system_in_user -%}{{- system -}}{%- endif -%}
{{- message['content'] -}}{{- @after_user -}}
{%- elif loop.index0 % 2 == 0 -%}
{{- @separator -}}{{- @before_user -}}{{- message['content'] -}}{{- @after_user -}}
{%- else -%}
{{- @before_assistant -}}{{- message['content'] -}}
{%- if loop.last -%}{{- @last -}}{%- else -%}{{- @after_assistant -}}{%- endif -%}
{%- endif -%}
{%- endfor -%}"""


def chat_template_of(
    rendering: Rendering, reading: Reading, tokenizer: PreTrainedTokenizerBase
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
        "system_in_user": bool(strings["system_in_user"]),
        "prefix": text(strings["prefix"]),
        "separator": text(strings["separator"]),
    }
    for role in ("system", "user", "assistant"):
        before, _, after = text(strings[role]).partition(CONTENT)
        parts |= {f"before_{role}": before, f"after_{role}": after}
    last = parts["after_assistant"] + (text([EOS]) if strings["end"] else "")
    if reading.rule != "last":
        pad = str(tokenizer.convert_ids_to_tokens(reading.pad_id or 0))
        while pad and last.endswith(pad):
            last = last.removesuffix(pad)
    template = _JINJA
    # Longer names first: one may begin another.
    for name, value in sorted({**parts, "last": last}.items(), key=lambda part: -len(part[0])):
        written = ("true" if value else "false") if isinstance(value, bool) else _quoted(value)
        template = template.replace(f"@{name}", written)
    return template


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def by_llamafactory(voice: Voice, comparison: Comparison, response: Turns) -> Rendered:
    """LLaMA-Factory's own template, each piece of each turn encoded on its own.

    Byte-pair merges never reach across its pieces, so the ids differ from those of the same text
    encoded at once. Plain text stands as it is.
    """
    if isinstance(comparison.prompt, str) or isinstance(response, str):
        return by_chat_template(voice, comparison, response)
    if comparison.tools:
        raise ValueError("LLaMA-Factory's templates are read without tools")
    system, turns = _alternating((*comparison.prompt, *response))
    tokens = {BOS: voice.tokenizer.bos_token_id, EOS: voice.tokenizer.eos_token_id}
    pieces = [tokens.get(piece, piece) for piece in fill(voice.rendering.strings, system, turns)]
    # A tokenizer without a start token has none to write.
    return Rendered(pieces=tuple(p for p in pieces if p is not None), ending="exact")


def _alternating(messages: Sequence[Message]) -> tuple[str, list[str]]:
    """The system text, and the contents of the turns, user first.

    Raises:
        ValueError: turns that do not alternate, or of another role; LLaMA-Factory drops such rows.
        TypeError: a content that is not text.
    """
    system = ""
    if messages and messages[0].role == "system":
        system, messages = messages[0].content, messages[1:]
    for number, message in enumerate(messages):
        expected = ("user", "assistant")[number % 2]
        if message.role != expected or message.extra:
            raise ValueError(
                f"turn {number + 1} is {message.role}; LLaMA-Factory's templates alternate user "
                "and assistant, after one system text, without tool calls"
            )
    contents = [system, *(message.content for message in messages)]
    if not all(isinstance(content, str) for content in contents):
        raise TypeError("a message's content is not text")
    return contents[0], contents[1:]
