"""What a run will take: its model built without weights, its data split as training does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from plaudit.errors import DataError
from plaudit.model.packing import why_not_packed
from plaudit.planning.architecture import measure, read_config
from plaudit.planning.estimate import (
    Hardware,
    Length,
    Lengths,
    Plan,
    Split,
    activation_dtype,
    autocasts,
    from_characters,
    plan,
    within,
)
from plaudit.planning.trace import TraceRequest, trace_costs
from plaudit.recipe.schema import DataSection, Recipe
from plaudit.tokens.encode import encode
from plaudit.training.corpus import read_comparisons, split_sizes
from plaudit.training.prepare import make_encoder, prepare_tokenizer
from plaudit.types import Comparison, TokenTree

NO_LIMIT = 2**31
ENCODED_ROWS = 512


def plan_run(recipe: Recipe, hardware: Hardware, stated: tuple[int, Lengths] | None = None) -> Plan:
    """The plan of a run; its data are read unless ``stated``, a number of pairs and the lengths of
    all, stands in for them.

    Raises:
        PlauditError: the base, the data or the recipe cannot be used.
    """
    split, lengths, remarks = _read(recipe) if stated is None else _state(recipe.data, *stated)
    model = recipe.model
    config = read_config(
        model.base, revision=model.revision, trust_remote_code=model.trust_remote_code
    )
    packed = model.attention != "padded" and why_not_packed(config) is None
    request = TraceRequest(
        config=config,
        lora=recipe.lora,
        dtype="float32" if autocasts(recipe) else activation_dtype(recipe),
        autocast=torch.bfloat16 if autocasts(recipe) else None,
        packed=packed,
        quantized=model.quantize is not None,
    )
    result = plan(
        recipe,
        size=measure(
            config,
            recipe.lora,
            activations=activation_dtype(recipe),
            frozen_layers=recipe.model.freeze_layers,
        ),
        lengths=lengths,
        split=split,
        hardware=hardware,
        packed=packed,
        costs=lambda rows: trace_costs(request, [(row.prompt, row.responses) for row in rows]),
    )
    return replace(result, notes=(*remarks, *result.notes))


def _state(data: DataSection, pairs: int, lengths: Lengths) -> tuple[Split, Lengths, list[str]]:
    """The parts of ``pairs`` rows, their lengths, and remarks."""
    own = [name for name, files in (("eval", data.eval), ("test", data.test)) if files]
    remarks = [f"data.{name} has its own files, which --pairs does not count." for name in own]
    return Split(*split_sizes(data, pairs)), lengths, remarks


def _read(recipe: Recipe) -> tuple[Split, Lengths, list[str]]:
    """The parts, the lengths of the training part and remarks, read and split as training does."""
    parts = read_comparisons(recipe.data, recipe.loss)
    tallies = [loaded.tally for loaded in parts.loaded.values()]
    dropped = sum(sum(tally.dropped.values()) for tally in tallies)
    rows = sum(tally.rows for tally in tallies)
    remarks = [f"{dropped:,} of {rows:,} rows cannot be used."] if dropped else []
    sources = [fact for loaded in parts.loaded.values() for fact in loaded.sources]
    remarks += [line for fact in sources if (line := fact.unread.sentence(fact.name))]
    lengths_of = _lengths_of(recipe)
    train = lengths_of(parts.train)
    if not train.rows:
        raise DataError("this tokenizer cannot encode any comparison of data.train.")
    roles = [
        [train],
        *([*map(lengths_of, sets.values())] for sets in (parts.evaluation, parts.test)),
    ]
    tokens = recipe.tokens
    kept = [
        sum(
            len(within(lengths, max_length=tokens.max_length, truncation=tokens.truncation))
            for lengths in role
        )
        for role in roles
    ]
    encoded = sum(len(lengths.rows) for role in roles for lengths in role)
    known = sum(map(len, (parts.train, *parts.evaluation.values(), *parts.test.values())))
    if encoded < known:
        remarks.append(f"{known - encoded:,} comparisons cannot be encoded.")
    return Split(*kept, over_length=encoded - sum(kept)), train, remarks


def _lengths_of(recipe: Recipe) -> Callable[[Sequence[Comparison]], Lengths]:
    """Lengths of what can be encoded by the base's tokenizer where its folder is here, else from
    characters.
    """
    base = recipe.model.base
    if not (Path(base) / "tokenizer_config.json").is_file():
        return from_characters
    tokenizer = prepare_tokenizer(recipe.model, recipe.tokens, base)
    encoder = replace(
        make_encoder(recipe.tokens, tokenizer, None, as_chat=recipe.data.as_chat),
        max_length=NO_LIMIT,
    )

    def counted(comparisons: Sequence[Comparison]) -> Lengths:
        rows = tuple(
            Length(prompt=len(tree.prefix), responses=tuple(map(len, tree.branches)))
            for start in range(0, len(comparisons), ENCODED_ROWS)
            for tree in encode(encoder, comparisons[start : start + ENCODED_ROWS])
            if isinstance(tree, TokenTree)
        )
        return Lengths(rows=rows, how="counted by the base's tokenizer")

    return counted
