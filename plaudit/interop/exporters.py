"""The table of exporters: ``plaudit export --to NAME``. A new layout is its functions and a row."""

from __future__ import annotations

from plaudit.interop.export_records import Exporter
from plaudit.interop.llama_factory import write
from plaudit.interop.openrlhf import write
from plaudit.interop.sequence_classifier import write

EXPORTERS: dict[str, Exporter] = {
    "adapter": Exporter(
        help="a sequence classification adapter for PEFT",
        layout="adapter",
        write=write.write_adapter,
        read=write.read_adapter,
        encode=write.encode,
    ),
    "merged": Exporter(
        help="a whole sequence classifier for transformers, TRL, vLLM and SGLang",
        layout="whole",
        write=write.write_merged,
        read=write.read_merged,
        encode=write.encode,
    ),
    "llamafactory": Exporter(
        help="adapter or model with value_head.safetensors for LLaMA-Factory",
        layout="either",
        write=write.write,
        read=write.read,
        encode=None,
        decoders_only=True,
        own_facts=False,
    ),
    "openrlhf": Exporter(
        help="a whole model with its head's name and normalisation for OpenRLHF",
        layout="whole",
        write=write.write,
        read=write.read,
        encode=write.encode,
        exact_text=False,
        decoders_only=True,
    ),
}
