"""Rows that OpenRLHF reads. A file of its own, because writing rows loads no torch."""

from __future__ import annotations

from typing import Final

from plaudit.data.formats.records import Writer, explicit

MESSAGES_WRITER: Final = Writer(
    name="openrlhf",
    description="OpenRLHF: messages, read with --data.prompt_key and apply_chat_template",
    reader_name="explicit_conversational",
    lay_out=explicit,
    reads=frozenset({"margin"}),
)
