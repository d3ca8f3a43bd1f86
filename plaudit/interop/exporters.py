"""The table of exporters: ``plaudit export --to NAME``. A new layout is its functions and a row."""

from __future__ import annotations

from plaudit.interop.export_records import Exporter
from plaudit.interop.llama_factory import write as llama_factory
from plaudit.interop.openrlhf import write as openrlhf
from plaudit.interop.sequence_classifier import write as classifier

EXPORTERS: dict[str, Exporter] = {
    "adapter": Exporter(
        help="a sequence classification adapter for PEFT",
        layout="adapter",
        write=classifier.write_adapter,
        read=classifier.read_adapter,
        encode=classifier.encode,
    ),
    "merged": Exporter(
        help="a whole sequence classifier for transformers, TRL, vLLM and SGLang",
        layout="whole",
        write=classifier.write_merged,
        read=classifier.read_merged,
        encode=classifier.encode,
    ),
    "llamafactory": Exporter(
        help="adapter or model with value_head.safetensors for LLaMA-Factory",
        layout="either",
        write=llama_factory.write,
        read=llama_factory.read,
        encode=None,
        decoders_only=True,
        own_facts=False,
    ),
    "openrlhf": Exporter(
        help="a whole model with its head's name and normalisation for OpenRLHF",
        layout="whole",
        write=openrlhf.write,
        read=openrlhf.read,
        encode=openrlhf.encode,
        exact_text=False,
        decoders_only=True,
    ),
}
