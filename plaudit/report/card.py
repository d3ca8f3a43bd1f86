"""Model cards, from recorded metrics alone: of a run, and of a model made from others."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plaudit import __version__
from plaudit.errors import DataError
from plaudit.evaluation.numbers import FORMATS
from plaudit.evaluation.schema import (
    METRICS_FILE,
    PairMetrics,
    RunMetrics,
    parts,
    read_metrics,
)
from plaudit.report.plots import card_plots
from plaudit.report.record import (
    TEMPLATES,
    evaluations,
    hub_datasets,
    read_recalibration,
    shown_base,
    shown_path,
)
from plaudit.storage.atomic import write_text

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData
    from jinja2 import Environment

    from plaudit.model.checkpoint import CheckpointMetadata

CARD_FILE = "README.md"
RECIPE_FILE = "recipe.yaml"

# Everything CommonMark, its tables and the Hub's formulas read as markup. An underscore inside a
# word is none, and names of settings are easier to read without backslashes.
_MARKUP = re.compile(r"[\\`*\[\]|#~$]|(?<![^\W_])_|_(?![^\W_])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


class Markdown(str):
    """Text that is Markdown already, and is not escaped again."""

    __slots__ = ()


def escape(value: Any) -> str:
    """Any text as one line that Markdown and HTML show as it stands."""
    if isinstance(value, Markdown):
        return value
    line = "".join(char if char.isprintable() else " " for char in str(value))
    line = _MARKUP.sub(lambda match: "\\" + match[0], line)
    return "".join(_ENTITIES.get(char, char) for char in line)


def code(value: Any) -> Markdown:
    """A name as a code span, whatever backticks it holds; for text outside of tables."""
    line = "".join(char if char.isprintable() else " " for char in str(value)).strip() or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    pad = " " if "`" in (line[0], line[-1]) else ""
    return Markdown(f"{fence}{pad}{line}{pad}{fence}")


def write_card(folder: Path) -> Path:
    """Write ``README.md`` from ``metrics.json`` and the files that lie beside it.

    Raises DataError (no usable metrics.json) and OutputError (the disk).
    """
    path = folder / CARD_FILE
    write_text(path, render_card(folder))
    return path


def render_card(folder: Path) -> str:
    """The whole card: metadata the Hub reads, then the text. Raises DataError."""
    metrics = read_metrics(folder)
    body = (
        jinja_environment()
        .get_template("card.md.jinja")
        .render(
            **parts(metrics),
            base=shown_base(metrics.run),
            evaluations=evaluations(metrics),
            snippet=Markdown(snippet(metrics.run.method, metrics.run.chat_template_kind)),
            plots=card_plots(metrics, folder),
            has_recipe=(folder / RECIPE_FILE).is_file(),
            recalibration=read_recalibration(folder),
        )
    )
    metadata = card_data(metrics)
    return f"---\n{metadata.to_yaml()}\n---\n\n{body}"


def jinja_environment() -> Environment:
    """Templates of cards: every value is escaped for Markdown."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        # Not HTML: every value of the template goes through `escape` instead.
        autoescape=False,
        finalize=escape,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(FORMATS, path=shown_path, code=code)
    return environment


def card_data(metrics: RunMetrics) -> ModelCardData:
    """The metadata block: what the Hub indexes, with results in ``model-index``.

    A base that is no Hub id is left out, because the Hub refuses paths; the text names it.
    """
    from huggingface_hub import ModelCardData

    run = metrics.run
    adapter = run.method != "full"
    base = run.base if run.base_is_hub_id else None
    relation = "adapter" if adapter else "finetune"
    results = eval_results(metrics)
    return ModelCardData(
        model_name=_one_line(run.name) if results else None,
        eval_results=results or None,
        library_name="peft" if adapter else "transformers",
        base_model=base,
        base_model_relation=relation if base else None,
        pipeline_tag="text-classification",
        tags=["reward-model", "plaudit", *([run.method] if adapter else [])],
        datasets=hub_datasets(metrics) or None,
        metrics=["accuracy"],
    )


def eval_results(metrics: RunMetrics) -> list[EvalResult]:
    """Accuracy and loss of every evaluation, and of every named set of it.

    Results of one task, dataset, config, split and revision are merged by ``huggingface_hub``
    whatever their names are, so each set has a config of its own.
    """
    from huggingface_hub import EvalResult

    results = []
    for block in evaluations(metrics):
        kind = block.dataset
        ids = hub_datasets(metrics, kind)
        origin = ids[0] if len(ids) == 1 else "preference-comparisons"
        sets: dict[str, PairMetrics] = {kind: block, **block.datasets}
        for name, measured in sets.items():
            whole = name == kind and measured is block
            for metric, label, value in (
                ("accuracy", "Pairwise accuracy", measured.accuracy),
                ("loss", "Mean loss", measured.loss),
            ):
                if value is None:
                    continue
                results.append(
                    EvalResult(
                        task_type="text-classification",
                        task_name="Preference comparison",
                        dataset_type=origin,
                        dataset_name=_one_line(kind if whole else f"{kind}: {name}"),
                        dataset_config="all" if whole else _one_line(name),
                        dataset_split=kind,
                        metric_type=metric,
                        metric_name=label,
                        metric_value=value,
                    )
                )
    return results


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split()) or "unnamed"


def snippet(method: str, text: str) -> str:
    """Python that scores two responses with plain transformers (and PEFT for an adapter).

    Runs as it stands inside the folder. Follows the run's own way of making text: the chat
    template, or prompt and response end to end with the end token.
    """
    if method == "full":
        loader = "AutoModelForSequenceClassification"
        imports = f"from transformers import {loader}, AutoTokenizer"
    else:
        loader = "AutoPeftModelForSequenceClassification"
        imports = f"from peft import {loader}\nfrom transformers import AutoTokenizer"
    encode = _CHAT if text == "chat" else _TEXT
    return _SNIPPET.format(imports=imports, loader=loader, encode=encode)


_SNIPPET = """\
import torch
{imports}

folder = "."  # this folder, or its id on the Hub
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {loader}.from_pretrained(
    folder, num_labels=1, dtype=torch.float32
)
model.config.pad_token_id = tokenizer.pad_token_id
model.eval()

{encode}
batch = tokenizer.pad({{"input_ids": ids}}, padding_side="right", return_tensors="pt")
with torch.no_grad():
    rewards = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
print(rewards.squeeze(-1).tolist())  # higher is better, within one prompt"""

_CHAT = """\
prompt = [{"role": "user", "content": "How is sand made?"}]
responses = ["Water, wind and ice wear rock down into grains.", "No idea."]
texts = [
    tokenizer.apply_chat_template(
        [*prompt, {"role": "assistant", "content": response}], tokenize=False
    )
    for response in responses
]
ids = tokenizer(texts, add_special_tokens=False)["input_ids"]"""

_TEXT = """\
prompt = "How is sand made? "
responses = ["Water, wind and ice wear rock down into grains.", "No idea."]
ids = tokenizer([prompt + response for response in responses])["input_ids"]
end = tokenizer.eos_token_id
ends = (end, tokenizer.sep_token_id)
ids = [row if end is None or row[-1] in ends else [*row, end] for row in ids]"""


# ---- the card of a model made from others (exported, averaged)

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedCard:
    """What the card says. ``made`` is a sentence without its full stop, ``facts`` are the model's.

    ``usage`` stands under "How to use", None where plain transformers is all there is to say;
    ``plain`` says whether the code for transformers follows it, and ``served`` whether vLLM serves
    the folder. ``results_of`` is the run folder whose measured results are those of this model too,
    None where nothing was measured.
    ``parity`` and ``serving`` are as recorded beside the weights.
    """

    name: str
    made: str
    facts: CheckpointMetadata
    tags: tuple[str, ...]
    parity: Mapping[str, Any] | None
    notes: tuple[str, ...] = ()
    serving: Mapping[str, Any] = field(default_factory=dict)
    results_of: Path | None = None
    usage: str | None = None
    plain: bool = True
    served: bool = False


def write_derived_card(folder: Path, card: DerivedCard) -> None:
    """Write ``README.md``. Raises OutputError."""
    metrics, base = _metrics(card.results_of), card.facts.base
    adapter = card.facts.kind == "adapter"
    metadata = _metadata(card, metrics)
    plain = f"With plain transformers{' and PEFT' if adapter else ''}:"
    body = (
        jinja_environment()
        .get_template("derived.md.jinja")
        .render(
            card=card,
            usage=Markdown(card.usage or plain),
            plaudit_version=__version__,
            base=base if is_hub_id(base) else Path(base).name,
            base_is_hub_id=is_hub_id(base),
            evaluations=evaluations(metrics) if metrics else [],
            snippet=Markdown(snippet("lora" if adapter else "full", card.facts.text)),
            pooler=Markdown(json.dumps(dict(card.serving))) if card.serving else None,
        )
    )
    write_text(folder / CARD_FILE, f"---\n{metadata.to_yaml()}\n---\n\n{body}")


def is_hub_id(base: str) -> bool:
    """Whether a base can be named to others: ``owner/name``, and no folder here."""
    return _HUB_ID.fullmatch(base) is not None and not Path(base).exists()


def _metrics(run: Path | None) -> RunMetrics | None:
    """What the run measured; None where it is no run, or one of another version."""
    if run is None or not (run / METRICS_FILE).is_file():
        return None
    try:
        return read_metrics(run)
    except DataError:
        return None


def _metadata(card: DerivedCard, metrics: RunMetrics | None) -> ModelCardData:
    from huggingface_hub import ModelCardData

    results = eval_results(metrics) if metrics else []
    base = card.facts.base if is_hub_id(card.facts.base) else None
    adapter = card.facts.kind == "adapter"
    relation = "adapter" if adapter else "finetune"
    return ModelCardData(
        model_name=card.name if results else None,
        eval_results=results or None,
        library_name="peft" if adapter else "transformers",
        base_model=base,
        base_model_relation=relation if base else None,
        pipeline_tag="text-classification",
        tags=["reward-model", "plaudit", *card.tags],
        datasets=(hub_datasets(metrics) or None) if metrics else None,
        metrics=["accuracy"] if results else None,
    )
