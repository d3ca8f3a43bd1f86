"""Rows as a model sees them, for people: every token with its text, and what each row costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from plaudit import embedded
from plaudit.data.load import first_comparisons
from plaudit.data.reasons import EXPLANATIONS, learned_labels, usable_by, why_untrainable
from plaudit.errors import DataError
from plaudit.interop.formats import ReadOptions, is_reward_model
from plaudit.recipe.load import load_recipe, parse_recipe
from plaudit.recipe.schema import Recipe, Source
from plaudit.report.preview import remarks
from plaudit.reward_model import encoder_of, open_frozen
from plaudit.tokens import encode as encoding
from plaudit.tokens.encode import Encoder, encode, token_strings
from plaudit.tokens.rendering import is_chat
from plaudit.training.prepare import (
    make_encoder,
    open_warm_start,
    prepare_tokenizer,
    text_remark,
)
from plaudit.types import (
    Comparison,
    ComparisonPreview,
    IntArray,
    Skipped,
    TokenPreview,
    TokenTree,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewOptions:
    """Which rows, and whose tokens: those of ``model`` (a reward model or a plain base) or of the
    run of ``recipe``.

    The first ``rows`` of all sources together, or the ``row`` of a number (from 1) alone.
    ``max_length`` and ``chat_template`` stand in for those of the model or the recipe, ``base`` for
    the path of an adapter's base model. ``loss`` is the objective; None is that of the recipe, and
    ``bradley_terry`` without one.
    """

    model: str | None = None
    recipe: Path | None = None
    rows: int = 3
    row: int | None = None
    max_length: int | None = None
    chat_template: Path | None = None
    loss: str | None = None
    base: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """Rows, each with its remarks, the name of the model, and notes on the data."""

    rows: tuple[tuple[ComparisonPreview, tuple[str, ...]], ...]
    model: str
    notes: tuple[str, ...]


def preview(sources: Sequence[Source], options: PreviewOptions) -> Preview:
    """The rows of ``sources`` token by token, by the rules by which they are trained on and scored.

    Raises:
        DataError: no such row or objective, neither or both of model and recipe, or a template for
            a reward model, which has its own.
        ModelError: the model cannot be read.
    """
    if options.loss is not None:
        learned_labels(options.loss)
    first, last = (0, options.rows) if options.row is None else (options.row - 1, options.row)
    comparisons, notes = first_comparisons(sources, first, last)
    encoder, model, recipe = _encoder(options)
    if recipe is not None:
        texts = sum(not is_chat(comparison) for comparison in comparisons)
        remark = text_remark(encoder, recipe.data.as_chat, texts, len(comparisons))
        notes += [] if remark is None else [remark]
    recipe_loss = "bradley_terry" if recipe is None else recipe.loss.kind
    learns_from = learned_labels(options.loss or recipe_loss)
    # An objective that is named asks what it alone would learn.
    outputs = () if recipe is None or options.loss else recipe.loss.outputs
    rows = []
    for comparison, outcome in zip(comparisons, encode(encoder, comparisons), strict=True):
        shown = _preview(encoder, comparison, outcome)
        reason = why_untrainable(comparison, learns_from, outputs)
        # The reason for which a row is not encoded is said once.
        said = reason is None or reason == shown.reason
        rows.append((shown, tuple(remarks(shown, None if said else EXPLANATIONS[str(reason)]))))
    return Preview(rows=tuple(rows), model=model, notes=tuple(notes))


def _encoder(options: PreviewOptions) -> tuple[Encoder, str, Recipe | None]:
    """The encoder of a recipe's run, of a reward model, or of a run on a plain base; its name.

    The recipe is that of the run; ``None`` for a reward model.
    """
    model = options.model
    if (model is None) == (options.recipe is None):
        raise DataError("set --model or --recipe to choose the tokenizer, not both.")
    if model is None:
        assert options.recipe is not None
        recipe = load_recipe(options.recipe)
    elif is_reward_model(Path(model)):
        return _encoder_of_reward_model(model, options), model, None
    else:
        section = {"base": model, "trust_remote_code": options.trust_remote_code}
        recipe = parse_recipe({"model": section, "data": {"train": "-"}}, "--model")
    tokens = {"max_length": options.max_length, "chat_template": options.chat_template}
    chosen = {name: value for name, value in tokens.items() if value is not None}
    recipe = recipe.model_copy(update={"tokens": recipe.tokens.model_copy(update=chosen)})
    warm_start = open_warm_start(recipe.model)
    name = recipe.model.base
    folder = str(embedded.base_path()) if name == embedded.NAME else name
    tokenizer = prepare_tokenizer(recipe.model, recipe.tokens, folder, warm_start)
    encoder = make_encoder(recipe.tokens, tokenizer, warm_start, as_chat=recipe.data.as_chat)
    return encoder, name, recipe


def _encoder_of_reward_model(model: str, options: PreviewOptions) -> Encoder:
    if options.chat_template is not None:
        raise DataError(
            f"{model} is a reward model with its own chat template; remove --chat-template, or"
            " name its base model."
        )
    opened = open_frozen(
        model, ReadOptions(base=options.base, trust_remote_code=options.trust_remote_code)
    )
    encoder = encoder_of(opened)
    return replace(encoder, max_length=options.max_length or encoder.max_length)


def _preview(
    encoder: Encoder, comparison: Comparison, outcome: TokenTree | Skipped
) -> ComparisonPreview:
    empty = ComparisonPreview(
        id=comparison.id,
        where=comparison.where,
        grades=comparison.grades,
        rated=comparison.rated,
        soft_label=comparison.soft_label,
        attributes=comparison.attributes,
        objectives=usable_by(comparison),
    )
    if isinstance(outcome, Skipped):
        return replace(empty, reason=outcome.reason, detail=outcome.detail)
    before = outcome.prefix.tolist()
    return replace(
        empty,
        prefix=_tokens(encoder, outcome.prefix, ()),
        branches=tuple(_tokens(encoder, branch, before) for branch in outcome.branches),
        truncated=outcome.truncated,
        reason=encoding.why_untrainable(outcome),
    )


def _tokens(encoder: Encoder, ids: IntArray, before: Sequence[int]) -> tuple[TokenPreview, ...]:
    special = set(encoder.tokenizer.all_special_ids)
    texts = token_strings(encoder.tokenizer, ids.tolist(), before)
    return tuple(
        TokenPreview(id=number, text=text, special=number in special)
        for number, text in zip(ids.tolist(), texts, strict=True)
    )
