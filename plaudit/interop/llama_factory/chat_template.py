"""LLaMA-Factory's template of an imported model as a chat template that other tools render.

LLaMA-Factory keeps templates in its code, so an adapter of its carries none, or that of its base.
What the model reads is written out here as Jinja. Tools encode the text at once where
LLaMA-Factory encodes piece by piece; how many rows that changes is counted by the export's check.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from plaudit.interop.llama_factory.slots import BOS, CONTENT, EOS
from plaudit.types import Reading

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
    strings: Mapping[str, Any], reading: Reading, tokenizer: PreTrainedTokenizerBase
) -> str | None:
    """The template as Jinja; None for one with thoughts, which say more than text can.

    A model that scores the token before a trailing end token gets a template that leaves that
    token off the last answer, so that its end is what is scored everywhere.
    """
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
