"""A recipe's data as token trees: loaded, split, encoded, and every row accounted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from plaudit.data.load import Loaded, SourceFacts, load
from plaudit.data.split import count_leaks, split
from plaudit.errors import DataError
from plaudit.recipe import DataSection, Source
from plaudit.tokens.encode import Encoder, Refused, encode, why_untrainable
from plaudit.tokens.rendering import is_chat
from plaudit.types import Comparison, TokenTree

HELD_OUT = "eval"
TEST = "test"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Comparisons and their trees, in step with each other, and what encoding dropped.

    ``dropped`` counts comparisons by reason; ``lost`` has the reason of each input row among
    them once, however often its source's weight repeats it.
    """

    comparisons: tuple[Comparison, ...]
    trees: tuple[TokenTree, ...]
    dropped: Mapping[str, int]
    lost: Mapping[tuple[str, str, str], str]

    @property
    def rows(self) -> int:
        return len(self.comparisons) + sum(self.dropped.values())

    @property
    def groups(self) -> int:
        return len({comparison.group for comparison in self.comparisons})


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """What trains, the named sets that choose the checkpoint, and those touched once at the end.

    ``leaked_prompts`` counts evaluation and test comparisons whose prompt is in the training part
    too; it is zero for a split by prompt.
    """

    train: Part
    evaluation: Mapping[str, Part]
    test: Mapping[str, Part]
    loaded: Mapping[str, Loaded]
    was_split: bool
    leaked_prompts: int

    def parts(self) -> dict[str, tuple[Part, ...]]:
        """Parts by role."""
        return {
            "train": (self.train,),
            "eval": tuple(self.evaluation.values()),
            "test": tuple(self.test.values()),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparisons:
    """The split comparisons before encoding, by role and set name."""

    train: tuple[Comparison, ...]
    evaluation: Mapping[str, tuple[Comparison, ...]]
    test: Mapping[str, tuple[Comparison, ...]]
    loaded: Mapping[str, Loaded]
    was_split: bool


def read_comparisons(section: DataSection) -> Comparisons:
    """Load every source and split off what is to be held out.

    Named evaluation and test files win over the fractions, which are of all of ``data.train``.

    Raises:
        DataError: a source cannot be read, or a split would leave nothing on one side.
    """
    loaded = {"train": load(section.train, seed=section.seed)}
    train = loaded["train"].comparisons
    evaluation = _named_sets(section.eval, "eval", section.seed, loaded)
    test = _named_sets(section.test, "test", section.seed, loaded)
    left = 1.0
    if not evaluation and section.eval_fraction is not None:
        train, held_out = split(
            train, section.eval_fraction, by=section.split_by, seed=section.seed
        )
        evaluation = {HELD_OUT: held_out}
        left -= section.eval_fraction
    if not test and section.test_fraction is not None:
        # Both fractions are of everything, so a test set never changes the evaluation set.
        share = section.test_fraction / left
        train, held_out = split(train, share, by=section.split_by, seed=section.seed)
        test = {TEST: held_out}
    both = sorted(evaluation.keys() & test.keys())
    if both:
        raise DataError(
            f"An evaluation set and a test set are both named {both[0]}; give one another name."
        )
    return Comparisons(
        train=train,
        evaluation=evaluation,
        test=test,
        loaded=loaded,
        was_split=len(train) < len(loaded["train"].comparisons),
    )


def _named_sets(
    sources: Sequence[Source], role: str, seed: int, loaded: dict[str, Loaded]
) -> dict[str, tuple[Comparison, ...]]:
    sets: dict[str, tuple[Comparison, ...]] = {}
    for source in sources:
        one = load((source,), seed=seed)
        name = one.sources[0].name
        if name in sets:
            raise DataError(f"Two sets of data.{role} are named {name}; give one another name.")
        sets[name] = one.comparisons
        loaded[f"{role}:{name}"] = one
    return sets


def fingerprints(comparisons: Comparisons) -> dict[str, str]:
    """Fingerprint of each source by its path."""
    sources = [fact for loaded in comparisons.loaded.values() for fact in loaded.sources]
    return {fact.path: fact.fingerprint for fact in sources}


def encode_corpus(
    encoder: Encoder,
    comparisons: Comparisons,
    *,
    margins: bool,
    on_part: Callable[[str, int], None],
) -> Corpus:
    """Encode every part; ``on_part`` hears the name and the number of comparisons of each.

    Without ``margins``, those of the data are left out of training and evaluation alike.

    Raises:
        DataError: a part has nothing left that can be used.
    """

    def one(name: str, rows: Sequence[Comparison]) -> Part:
        on_part(name, len(rows))
        part = encode_part(encoder, rows, name)
        if margins:
            return part
        return replace(part, trees=tuple(replace(tree, margin=0.0) for tree in part.trees))

    train = one("train", comparisons.train)
    evaluation = {name: one(name, rows) for name, rows in comparisons.evaluation.items()}
    test = {name: one(name, rows) for name, rows in comparisons.test.items()}
    held_out = [c for part in (*evaluation.values(), *test.values()) for c in part.comparisons]
    return Corpus(
        train=train,
        evaluation=evaluation,
        test=test,
        loaded=comparisons.loaded,
        was_split=comparisons.was_split,
        leaked_prompts=count_leaks(train.comparisons, held_out),
    )


def encode_part(encoder: Encoder, comparisons: Sequence[Comparison], name: str) -> Part:
    """Trees of the comparisons that encode and can be learned from; the rest counted.

    Raises:
        DataError: nothing is left.
    """
    kept: list[Comparison] = []
    trees: list[TokenTree] = []
    dropped: Counter[str] = Counter()
    lost: dict[tuple[str, str, str], str] = {}
    example = ""
    for comparison, outcome in zip(comparisons, encode(encoder, comparisons), strict=True):
        reason = outcome.reason if isinstance(outcome, Refused) else why_untrainable(outcome)
        if isinstance(outcome, TokenTree) and reason is None:
            trees.append(replace(outcome, index=len(kept)))
            kept.append(comparison)
        else:
            assert reason is not None
            dropped[reason] += 1
            lost[comparison.source, comparison.where, comparison.id] = reason
            example = example or (outcome.detail if isinstance(outcome, Refused) else "")
    if not kept:
        counts = ", ".join(f"{reason} {count}" for reason, count in dropped.most_common())
        raise DataError(
            f"None of the {len(comparisons)} comparisons of the {name} part can be used "
            f"({counts}{'; ' + example if example else ''}); raise tokens.max_length, set "
            "tokens.overlong to truncate_prompt, or look at the data."
        )
    return Part(comparisons=tuple(kept), trees=tuple(trees), dropped=dict(dropped), lost=lost)


def largest_id(corpus: Corpus) -> int:
    """The largest token id of all parts."""
    return max(
        int(ids.max())
        for part in chain.from_iterable(corpus.parts().values())
        for tree in part.trees
        for ids in (tree.prefix, *tree.branches)
        if len(ids)
    )


def text_kind(parts: Sequence[Part]) -> str:
    """``chat``, ``text`` or ``mixed``: what the chat template had to render."""
    kinds = {is_chat(comparison) for part in parts for comparison in part.comparisons}
    return "mixed" if len(kinds) == 2 else "chat" if kinds == {True} else "text"


def data_facts(corpus: Corpus, split_by: str) -> dict[str, Any]:
    """The ``data`` block of ``metrics.json``; law 6 over everything that was read.

    ``split_by`` is the recipe's, or ``files`` where nothing had to be split.

    Rows are counted as they stand in the input; ``splits`` counts comparisons, after weights.
    """
    rows = used = 0
    dropped: Counter[str] = Counter()
    sources: list[dict[str, Any]] = []
    for role, loaded in corpus.loaded.items():
        rows += loaded.tally.rows
        used += loaded.tally.used
        dropped.update(loaded.tally.dropped)
        sources += [_source_facts(fact, role.partition(":")[0]) for fact in loaded.sources]
    for part in chain.from_iterable(corpus.parts().values()):
        dropped.update(part.lost.values())
        used -= len(part.lost)
    assert rows == used + sum(dropped.values()), "a row is unaccounted for"
    return {
        "rows": rows,
        "used": used,
        "dropped": dict(dropped),
        "splits": {role: _split_facts(parts) for role, parts in corpus.parts().items() if parts},
        "split_by": split_by if corpus.was_split else "files",
        "leaked_prompts": corpus.leaked_prompts,
        "sources": sources,
        "margins": _margin_facts([p for parts in corpus.parts().values() for p in parts]),
        "tokens": _token_facts([p for parts in corpus.parts().values() for p in parts]),
    }


def _split_facts(parts: Sequence[Part]) -> dict[str, Any]:
    dropped: Counter[str] = Counter()
    for part in parts:
        dropped.update(part.dropped)
    return {
        "rows": sum(part.rows for part in parts),
        "used": sum(len(part.comparisons) for part in parts),
        "dropped": dict(dropped),
        "groups": sum(part.groups for part in parts),
    }


def _source_facts(fact: SourceFacts, role: str) -> dict[str, Any]:
    return {
        "name": fact.name,
        "path": fact.path,
        "format": fact.format,
        "rows": fact.tally.rows,
        "used": fact.tally.used,
        "licence": fact.licence,
        "split": role,
        "fingerprint": fact.fingerprint,
    }


def _margin_facts(parts: Sequence[Part]) -> dict[str, float] | None:
    """How many comparisons have a margin that the loss subtracts, and their mean; None for none."""
    margins = [tree.margin for part in parts for tree in part.trees if tree.margin]
    if not margins:
        return None
    return {"comparisons": len(margins), "mean": sum(margins) / len(margins)}


def _token_facts(parts: Sequence[Part]) -> dict[str, int]:
    """Tokens computed, tokens of separate conversations, and prompts cut to fit."""
    trees = [tree for part in parts for tree in part.trees]
    cut = [tree.truncated for tree in trees if tree.truncated]
    return {
        "packed": sum(tree.tokens for tree in trees),
        "separate": sum(sum(tree.lengths) for tree in trees),
        "longest": max(max(tree.lengths) for tree in trees),
        "truncated_prompts": len(cut),
        "truncated_tokens": sum(cut),
    }
