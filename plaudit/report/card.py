"""Model cards, from recorded metrics alone: of a run, and of a model made from others."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plaudit import __version__
from plaudit.errors import DataError
from plaudit.evaluation.schema import (
    EvaluationMetrics,
    PairMetrics,
    RunMetrics,
    parts,
    read_metrics,
)
from plaudit.evaluation.sentences import best_baseline
from plaudit.report import highlights
from plaudit.report.plots import card_plots
from plaudit.report.record import (
    MOST_OUTPUTS,
    PLOTS_FOLDER,
    SCORES,
    evaluations,
    hub_datasets,
    learned_from,
    loss_in_words,
    read_recalibration,
    shown_base,
    template_environment,
    without_controls,
)
from plaudit.storage.atomic import write_text
from plaudit.types import Outputs

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
    line = _MARKUP.sub(lambda match: "\\" + match[0], without_controls(value))
    return "".join(_ENTITIES.get(char, char) for char in line)


def code(value: Any) -> Markdown:
    """A name as a code span, whatever backticks it holds; for text outside of tables."""
    line = without_controls(value).strip() or " "
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
    run, recalibration = metrics.run, read_recalibration(folder)
    blocks = highlights.ordered(metrics)
    metadata = card_data(
        one_line(run.name),
        run.base if run.base_is_hub_id else None,
        metrics,
        adapter=run.method != "full",
        tags=() if run.method == "full" else (run.method,),
    )
    return _fill(
        "card.md.jinja",
        metadata,
        **parts(metrics),
        base=shown_base(run),
        learned_from=learned_from(metrics),
        the_loss=loss_in_words(run),
        evaluations=blocks,
        warnings=highlights.all_warnings(metrics, recalibration),
        not_evaluated=highlights.NOT_EVALUATED,
        limitations=highlights.limitations(
            measured=bool(blocks),
            loss=run.loss,
            outputs=None if run.objective is None else run.objective.outputs,
        ),
        hyperparameters=highlights.grouped_hyperparameters(run),
        history=highlights.shown_history(metrics),
        snippet=snippet(
            run.method,
            run.chat_template_kind,
            None if run.objective is None else run.objective.outputs,
        ),
        picture=_pictures(metrics, folder),
        has_recipe=(folder / RECIPE_FILE).is_file(),
        recalibration=recalibration,
    )


def _pictures(metrics: RunMetrics, folder: Path) -> Callable[[str], Markdown]:
    """A plot of the folder as an image with its caption, nothing where there is no such plot."""
    captions = dict(card_plots(metrics, folder))

    def picture(name: str) -> Markdown:
        if name not in captions:
            return Markdown("")
        return Markdown(f"\n\n![{escape(captions[name])}]({PLOTS_FOLDER}/{name}.png)")

    return picture


def _fill(template: str, metadata: ModelCardData, **values: Any) -> str:
    body = (
        _environment()
        .get_template(template)
        .render(
            values,
            titles=highlights.TITLES,
            intended_use=highlights.INTENDED_USE,
            kinds=highlights.KINDS,
            truncations=highlights.TRUNCATIONS,
            most=highlights.MOST_ROWS,
            most_outputs=MOST_OUTPUTS,
            scores=SCORES,
            most_warnings=highlights.MOST_WARNINGS,
        )
    )
    body = re.sub(r"\n{3,}", "\n\n", body)
    return f"---\n{metadata.to_yaml()}\n---\n\n{body}"


def _environment() -> Environment:
    """Templates of cards. They are no HTML: every value is escaped for Markdown instead."""
    environment = template_environment(escape, autoescape=False)
    environment.filters.update(
        code=code,
        markdown=Markdown,
        best_baseline=best_baseline,
        bias_sentence=highlights.bias_sentence,
        by_weight=highlights.by_weight,
        leak=highlights.leak,
        strongest_biases=highlights.strongest_biases,
        weakest_slices=highlights.weakest_slices,
        worst_outcomes=highlights.worst_outcomes,
    )
    return environment


def card_data(
    name: str, base: str | None, metrics: RunMetrics | None, *, adapter: bool, tags: Sequence[str]
) -> ModelCardData:
    """The metadata block: what the Hub indexes, with results in ``model-index``.

    ``base`` is None where it is no Hub id, because the Hub refuses paths; the text names it.
    """
    from huggingface_hub import ModelCardData

    results = eval_results(metrics) if metrics else []
    relation = "adapter" if adapter else "finetune"
    return ModelCardData(
        model_name=name if results else None,
        eval_results=results or None,
        library_name="peft" if adapter else "transformers",
        base_model=base,
        base_model_relation=relation if base else None,
        pipeline_tag="text-classification",
        tags=["reward-model", "plaudit", *tags],
        datasets=(hub_datasets(metrics) or None) if metrics else None,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
    )


def eval_results(metrics: RunMetrics) -> list[EvalResult]:
    """Accuracy of every evaluation, and of every named set of it; without one those of ratings.

    ``huggingface_hub`` merges results of one task, dataset, config, split and revision, so each set
    has a config of its own, and the whole evaluation one that no set has.
    """
    from huggingface_hub import EvalResult

    results: list[EvalResult] = []
    for block in evaluations(metrics):
        kind = block.dataset
        ids = hub_datasets(metrics, kind)
        origin = ids[0] if len(ids) == 1 else "preference-comparisons"
        named = {one_line(name): each for name, each in block.datasets.items()}
        whole = "all"
        while whole in named:
            whole += " sets"
        sets: list[tuple[str, str, PairMetrics]] = [
            (whole, kind, block),
            *((name, f"{kind}: {name}", each) for name, each in named.items()),
        ]
        results += [
            EvalResult(
                task_type="text-classification",
                dataset_type=origin,
                dataset_name=one_line(title),
                dataset_config=config,
                dataset_split=kind,
                metric_type="accuracy",
                metric_value=measured.accuracy,
            )
            for config, title, measured in sets
            if measured.accuracy is not None
        ]
        results += [
            EvalResult(
                task_type="text-classification",
                dataset_type=origin,
                dataset_name=kind,
                dataset_config=whole,
                dataset_split=kind,
                metric_type=metric,
                metric_value=value,
            )
            for metric, value in _of_ratings(block)
        ]
    return results


def _of_ratings(block: EvaluationMetrics) -> list[tuple[str, float]]:
    """The metrics of an evaluation without accuracy, under the names of Hugging Face's metrics."""
    ratings = block.ratings
    if block.accuracy is not None or ratings is None:
        return []
    values = (
        [("roc_auc", ratings.auc)]
        if ratings.auc is not None
        else [("mae", ratings.mae), ("spearmanr", ratings.spearman)]
    )
    return [(name, value) for name, value in values if value is not None]


def one_line(text: str) -> str:
    """A name for the metadata, which must not be empty."""
    return " ".join(without_controls(text).split()) or "unnamed"


def snippet(method: str, text: str, outputs: Outputs | None = None) -> Markdown:
    """Python that scores two responses with plain transformers (and PEFT for an adapter).

    Runs as it stands inside the folder. Follows the run's own way of making text: the chat
    template, or prompt and response end to end with the end token. ``outputs`` are those of a head
    that has several, from which it makes the reward.
    """
    template = _environment().get_template("snippet.py.jinja")
    written = template.render(
        adapter=method != "full",
        chat=text == "chat",
        outputs=None if outputs is None else Markdown(json.dumps(list(outputs.names))),
        labels=1 if outputs is None else len(outputs.names),
        weights=None if outputs is None else Markdown(list(outputs.weights)),
        offsets=None if outputs is None else Markdown(list(outputs.offsets)),
    )
    return Markdown(written.rstrip())


# ---- the card of a model made from others (exported, averaged)

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedCard:
    """What the card says. ``made`` is a sentence without its full stop, ``model`` is its metadata.

    ``usage`` stands under "How to use", None where plain transformers is all there is to say;
    ``plain`` says whether the code for transformers follows it, and ``served`` whether vLLM serves
    the folder. ``results_of`` is the run folder whose measured results are those of this model too,
    None where nothing was measured.
    ``parity`` and ``serving`` are as recorded beside the weights.
    """

    name: str
    made: str
    model: CheckpointMetadata
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
    metrics, base = _metrics(card.results_of), card.model.base
    blocks = highlights.ordered(metrics) if metrics else []
    # Others can read the base by owner/name, and not a folder here.
    shared = _HUB_ID.fullmatch(base) is not None and not Path(base).exists()
    adapter = card.model.kind == "adapter"
    metadata = card_data(
        card.name, base if shared else None, metrics, adapter=adapter, tags=card.tags
    )
    text = _fill(
        "derived.md.jinja",
        metadata,
        card=card,
        usage=Markdown(card.usage) if card.usage else None,
        plaudit_version=__version__,
        base=base if shared else Path(base).name,
        base_is_hub_id=shared,
        evaluations=blocks,
        limitations=highlights.limitations(
            measured=bool(blocks),
            loss=None if card.model.objective is None else card.model.objective.kind,
            outputs=card.model.outputs,
        ),
        snippet=snippet("lora" if adapter else "full", card.model.text, card.model.outputs),
        pooler=Markdown(json.dumps(dict(card.serving))) if card.serving else None,
    )
    write_text(folder / CARD_FILE, text)


def _metrics(run: Path | None) -> RunMetrics | None:
    """What the run measured; None where it is no run, or one of another version."""
    try:
        return None if run is None else read_metrics(run)
    except DataError:
        return None
