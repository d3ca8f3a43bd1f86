"""What a run will take: its model built without weights, its data split as training does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from plaudit.errors import DataError
from plaudit.model.load import check_lora
from plaudit.model.packing import why_not_packed
from plaudit.planning.architecture import ModelSize, measure, read_config
from plaudit.planning.estimate import (
    Hardware,
    Length,
    Lengths,
    Plan,
    Split,
    activation_dtype,
    equal_lengths,
    from_characters,
    plan,
    within,
)
from plaudit.recipe.schema import Recipe
from plaudit.tokens.batch import MICROBATCH_TOKENS
from plaudit.tokens.encode import Encoder, encode
from plaudit.training.corpus import read_comparisons, split_sizes
from plaudit.training.prepare import prepare_tokenizer, rendering_of
from plaudit.types import Comparison, TokenTree, Turns

NO_LIMIT = 2**31
ENCODED_ROWS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class StatedSizes:
    """Sizes that stand in for the data: pairs, all with the same lengths in tokens."""

    pairs: int
    prompt_tokens: int
    response_tokens: int


def plan_run(recipe: Recipe, hardware: Hardware, sizes: StatedSizes | None = None) -> Plan:
    """The plan of a run; its data are read unless ``sizes`` stand in for them.

    Raises:
        PlauditError: the base, the data or the recipe cannot be used.
    """
    split, lengths, remarks = _sizes(recipe, sizes)
    size, packed = _model(recipe)
    result = plan(
        recipe,
        size=size,
        lengths=lengths,
        split=split,
        hardware=hardware,
        packed=packed,
        auto_tokens=MICROBATCH_TOKENS,
    )
    return replace(result, notes=(*remarks, *result.notes))


def _model(recipe: Recipe) -> tuple[ModelSize, bool]:
    """The model's sizes, and whether its batches can be packed."""
    model = recipe.model
    config = read_config(
        model.base, revision=model.revision, trust_remote_code=model.trust_remote_code
    )
    if recipe.lora is not None:
        check_lora(config, recipe.lora)
    size = measure(config, recipe.lora, activations=activation_dtype(recipe))
    return size, model.attention != "padded" and why_not_packed(config) is None


def _sizes(recipe: Recipe, stated: StatedSizes | None) -> tuple[Split, Lengths, list[str]]:
    """The parts, the lengths of the training part and remarks: stated, or read and split as
    training does.
    """
    data = recipe.data
    if stated is not None:
        own = [name for name, files in (("eval", data.eval), ("test", data.test)) if files]
        remarks = [f"data.{name} has files of its own, not counted with --pairs." for name in own]
        lengths = equal_lengths(stated.prompt_tokens, stated.response_tokens)
        return Split.of(*split_sizes(data, stated.pairs)), lengths, remarks
    parts = read_comparisons(data)
    tallies = [loaded.tally for loaded in parts.loaded.values()]
    dropped = sum(sum(tally.dropped.values()) for tally in tallies)
    rows = sum(tally.rows for tally in tallies)
    remarks = [f"{dropped:,} of {rows:,} rows cannot be used."] if dropped else []
    sources = [fact for loaded in parts.loaded.values() for fact in loaded.sources]
    remarks += [line for fact in sources if (line := fact.unread.sentence(fact.name))]
    lengths_of = _lengths_of(recipe)
    train = lengths_of(parts.train)
    if not train.rows:
        raise DataError("not one comparison of data.train can be encoded by this tokenizer.")
    held_out = [
        [lengths_of(part) for part in sets.values()] for sets in (parts.evaluation, parts.test)
    ]
    tokens = recipe.tokens
    kept = [
        sum(
            len(within(lengths, max_length=tokens.max_length, truncation=tokens.truncation))
            for lengths in role
        )
        for role in ([train], *held_out)
    ]
    encoded = sum(len(lengths.rows) for role in ([train], *held_out) for lengths in role)
    known = sum(map(len, (parts.train, *parts.evaluation.values(), *parts.test.values())))
    if encoded < known:
        remarks.append(f"{known - encoded:,} comparisons cannot be encoded.")
    return Split.of(*kept, over_length=encoded - sum(kept)), train, remarks


def _lengths_of(recipe: Recipe) -> Callable[[Sequence[Comparison]], Lengths]:
    """Lengths of what can be encoded by the base's tokenizer where its folder is here, else from
    characters.
    """
    if not (Path(recipe.model.base) / "tokenizer_config.json").is_file():
        return _from_characters
    encoder = Encoder(
        tokenizer=prepare_tokenizer(recipe.model, recipe.tokens, recipe.model.base),
        max_length=NO_LIMIT,
        text_as_turns=recipe.data.as_chat is True,
        chat_template_kwargs=recipe.tokens.chat_template_kwargs,
        rendering=rendering_of(recipe.tokens, None),
    )

    def counted(comparisons: Sequence[Comparison]) -> Lengths:
        rows = tuple(
            Length(
                prompt=len(tree.prefix), responses=tuple(len(branch) for branch in tree.branches)
            )
            for start in range(0, len(comparisons), ENCODED_ROWS)
            for tree in encode(encoder, comparisons[start : start + ENCODED_ROWS])
            if isinstance(tree, TokenTree)
        )
        return Lengths(rows=rows, how="counted by the base's tokenizer")

    return counted


def _from_characters(comparisons: Sequence[Comparison]) -> Lengths:
    return from_characters(
        [
            (_characters(item.prompt), tuple(_characters(r) for r in item.responses))
            for item in comparisons
        ]
    )


def _characters(turns: Turns) -> int:
    if isinstance(turns, str):
        return len(turns)
    return sum(
        len(turn.content if isinstance(turn.content, str) else str(turn.content)) for turn in turns
    )
