"""Rows that OpenRLHF reads. A file of its own, because writing rows loads no torch."""

from __future__ import annotations

from typing import Any, Final

from plaudit.data.formats.records import Writer, plain
from plaudit.types import Comparison


def write_messages(pair: Comparison) -> dict[str, Any]:
    """The prompt in its own column, all as messages."""
    better, worse = pair.responses
    return {"prompt": plain(pair.prompt), "chosen": plain(better), "rejected": plain(worse)}


MESSAGES_WRITER: Final = Writer(
    name="openrlhf",
    description="OpenRLHF: messages, read with --data.prompt_key and apply_chat_template",
    reader_name="explicit_conversational",
    lay_out=write_messages,
    reads=frozenset({"margin"}),
)
