"""The card of a model made from others (exported, averaged): what it is and how it was checked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plaudit import __version__
from plaudit.errors import DataError
from plaudit.report.card import CARD_FILE, Markdown, eval_results, jinja_environment, snippet
from plaudit.report.record import METRICS_FILE, evaluations, hub_datasets, read_metrics
from plaudit.storage.atomic import write_text

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedCard:
    """What the card says. ``made`` is a sentence without its full stop.

    ``usage`` stands under "How to use", None where plain transformers is all there is to say;
    ``plain`` says whether the code for transformers follows it, and ``served`` whether vLLM serves
    the folder. ``results_of`` is the run folder whose measured results are those of this model too,
    None where nothing was measured.
    ``parity`` and ``serving`` are as recorded beside the weights.
    """

    name: str
    made: str
    adapter: bool
    tags: tuple[str, ...]
    text: str
    base: str
    base_revision: str | None
    parity: Mapping[str, Any] | None
    notes: tuple[str, ...] = ()
    serving: Mapping[str, Any] = field(default_factory=dict)
    results_of: Path | None = None
    usage: str | None = None
    plain: bool = True
    served: bool = False


def write_derived_card(folder: Path, card: DerivedCard) -> None:
    """Write ``README.md``. Raises OutputError."""
    metrics = _metrics(card.results_of)
    metadata = _metadata(card, metrics)
    plain = f"With plain transformers{' and PEFT' if card.adapter else ''}:"
    body = (
        jinja_environment()
        .get_template("derived.md.jinja")
        .render(
            card=card,
            usage=Markdown(card.usage or plain),
            plaudit_version=__version__,
            base=card.base if is_hub_id(card.base) else Path(card.base).name,
            base_is_hub_id=is_hub_id(card.base),
            evaluations=evaluations(metrics) if metrics else [],
            snippet=Markdown(
                snippet(
                    {
                        "method": "lora" if card.adapter else "full",
                        "chat_template_kind": card.text,
                    }
                )
            ),
            pooler=Markdown(json.dumps(dict(card.serving))) if card.serving else None,
        )
    )
    write_text(folder / CARD_FILE, f"---\n{metadata.to_yaml()}\n---\n\n{body}")


def is_hub_id(base: str) -> bool:
    """Whether a base can be named to others: ``owner/name``, and no folder here."""
    return _HUB_ID.fullmatch(base) is not None and not Path(base).exists()


def _metrics(run: Path | None) -> dict[str, Any] | None:
    """What the run measured; None where it is no run, or one of another version."""
    if run is None or not (run / METRICS_FILE).is_file():
        return None
    try:
        return read_metrics(run)
    except DataError:
        return None


def _metadata(card: DerivedCard, metrics: Mapping[str, Any] | None) -> ModelCardData:
    from huggingface_hub import ModelCardData

    results = eval_results(metrics) if metrics else []
    base = card.base if is_hub_id(card.base) else None
    relation = "adapter" if card.adapter else "finetune"
    return ModelCardData(
        model_name=card.name if results else None,
        eval_results=results or None,
        library_name="peft" if card.adapter else "transformers",
        base_model=base,
        base_model_relation=relation if base else None,
        pipeline_tag="text-classification",
        tags=["reward-model", "plaudit", *card.tags],
        datasets=(hub_datasets(metrics) or None) if metrics else None,
        metrics=["accuracy"] if results else None,
    )
