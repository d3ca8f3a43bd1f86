"""A recipe's data as token trees: loaded, split, encoded, and every row accounted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from plaudit.data.load import LoadedComparisons, OnRead, load_comparisons
from plaudit.data.split import count_leaks, split, target_rows
from plaudit.data.store import StoredComparisons
from plaudit.errors import DataError, RecipeError
from plaudit.evaluation.schema import MarginUse, RunData, SplitUse, TokenUse
from plaudit.recipe.objectives import OBJECTIVES
from plaudit.recipe.schema import DataSection, LossSection, Source
from plaudit.tokens.encode import OVER_LENGTH, Encoder
from plaudit.tokens.store import Encoded, Part, encode_rows
from plaudit.types import Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """What trains, the named sets that choose the checkpoint, and those evaluated once at the end.

    ``leaked_prompts`` counts evaluation and test comparisons whose prompt is in the training part
    too; it is zero for a split by prompt.
    """

    train: Part
    evaluation: Mapping[str, Part]
    test: Mapping[str, Part]
    loaded: Mapping[str, LoadedComparisons]
    was_split: bool
    leaked_prompts: int

    def parts(self) -> dict[str, tuple[Part, ...]]:
        """Parts by role."""
        return {
            "train": (self.train,),
            "eval": tuple(self.evaluation.values()),
            "test": tuple(self.test.values()),
        }

    @property
    def every(self) -> tuple[Part, ...]:
        """All parts."""
        return tuple(chain.from_iterable(self.parts().values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparisons:
    """The split comparisons before encoding, by role and set name."""

    train: StoredComparisons
    evaluation: Mapping[str, StoredComparisons]
    test: Mapping[str, StoredComparisons]
    loaded: Mapping[str, LoadedComparisons]
    was_split: bool


def read_comparisons(
    section: DataSection,
    options: LossSection = LossSection(),
    *,
    on_read: OnRead = lambda name, rows: None,
) -> Comparisons:
    """Load every source and split off the held-out part; ``on_read`` is called with the rows read.

    What the objective learns from is kept. Named evaluation and test files win over the
    fractions, which are of all of ``data.train``.

    Raises:
        DataError: a source cannot be read, the objective has nothing to learn from, or a split
            would leave nothing on one side.
    """
    kind, learns_from = options.kind, OBJECTIVES[options.kind].learns_from
    read = partial(
        load_comparisons,
        seed=section.seed,
        learns_from=learns_from,
        outputs=options.outputs,
        on_read=on_read,
    )
    loaded = {"train": read(section.train, stopping_strategy=section.stopping_strategy)}
    if learns_from == "ratings" and not options.outputs and not loaded["train"].rated:
        paths = ", ".join(source.path for source in section.train)
        raise DataError(
            f"loss.kind is {kind}, which learns from ratings, but none of the"
            f" {loaded['train'].tally.rows:,} rows of {paths} has one: they say which response is"
            " better; set loss.kind to bradley_terry, or add rows with a rating."
        )
    train = loaded["train"].comparisons
    evaluation = _named_sets(section.eval, "eval", read, loaded)
    test = _named_sets(section.test, "test", read, loaded)
    held_out_size, test_share = _held_out_sizes(section, len(np.unique(train.rows_N)))
    if held_out_size is not None:
        train, held_out = split(train, held_out_size, by=section.split_by, seed=section.seed)
        evaluation = {"eval": held_out}
    if test_share is not None:
        train, held_out = split(train, test_share, by=section.split_by, seed=section.seed)
        test = {"test": held_out}
    both = sorted(evaluation.keys() & test.keys())
    if both:
        raise DataError(
            f"An evaluation set and a test set are both named {both[0]}; set different names."
        )
    return Comparisons(
        train=train,
        evaluation=evaluation,
        test=test,
        loaded=loaded,
        was_split=len(train) < len(loaded["train"].comparisons),
    )


def fingerprints(comparisons: Comparisons) -> tuple[dict[str, str], dict[str, str]]:
    """Fingerprints of the sources by path: of training and evaluation data, and of test data."""
    trained: dict[str, str] = {}
    tests: dict[str, str] = {}
    for role, loaded in comparisons.loaded.items():
        prints = tests if role.startswith("test:") else trained
        prints |= {source.path: source.fingerprint for source in loaded.sources}
    return trained, tests


def split_sizes(section: DataSection, rows: int) -> tuple[int, int, int]:
    """Rows for training, evaluation and test that :func:`read_comparisons` makes of ``rows`` rows,
    each of a prompt of its own; 0 for a part with files of its own.

    Raises:
        DataError: they leave nothing to train on.
    """
    evaluation = test = 0
    size, share = _held_out_sizes(section, rows)
    if size is not None:
        evaluation = min(target_rows(size, rows), rows - 1)
    if share is not None:
        test = min(target_rows(share, rows - evaluation), rows - evaluation - 1)
    return rows - evaluation - test, evaluation, test


def _held_out_sizes(section: DataSection, rows: int) -> tuple[float | None, float | None]:
    """What is held out of the training sources' ``rows`` for evaluation, and the share of what is
    then left that is held out for the test.

    The recipe's fractions are of everything, so that a test set never changes the evaluation set.
    """
    left = 1.0
    size = None if section.eval else section.eval_rows or section.eval_fraction
    if size is not None:
        left -= size if size < 1 else size / rows
    if section.test or section.test_fraction is None:
        return size, None
    if section.test_fraction >= left:
        raise DataError(
            f"data.eval_rows {section.eval_rows} and data.test_fraction {section.test_fraction:g}"
            " leave nothing to train on; reduce them."
        )
    return size, section.test_fraction / left


def _named_sets(
    sources: Sequence[Source],
    role: str,
    read: Callable[[Sequence[Source]], LoadedComparisons],
    loaded: dict[str, LoadedComparisons],
) -> dict[str, StoredComparisons]:
    sets: dict[str, StoredComparisons] = {}
    for source in sources:
        one = read((source,))
        name = one.sources[0].name
        if name in sets:
            raise DataError(f"Two sources of data.{role} are named {name}; set different names.")
        sets[name] = one.comparisons
        loaded[f"{role}:{name}"] = one
    return sets


def encode_corpus(
    encoder: Encoder,
    comparisons: Comparisons,
    *,
    ignored: frozenset[str] = frozenset(),
    copy_seed: int | None = None,
    on_rows: Callable[[int, int], None] = lambda done, total: None,
) -> Corpus:
    """Encode every source and look up the trees of every part.

    ``on_rows`` hears rows done and rows in all, per role. ``ignored`` labels of the data are left
    out of training and evaluation alike. With ``copy_seed``, training comparisons have a copy of
    one response.

    Raises:
        DataError: a part has nothing left that can be used.
    """
    encoded = {
        role: encode_rows(encoder, loaded.comparisons, on_rows=on_rows)
        for role, loaded in comparisons.loaded.items()
        # With copies, training rows are encoded by themselves; what is split off them is not.
        if role != "train" or copy_seed is None or comparisons.was_split
    }

    def parts(role: str, sets: Mapping[str, StoredComparisons]) -> dict[str, Part]:
        return {
            # What was split off lies in the training files.
            name: make_part(
                encoded[f"{role}:{name}" if f"{role}:{name}" in encoded else "train"],
                rows,
                name,
                ignored,
            )
            for name, rows in sets.items()
        }

    of_training = (
        encoded["train"]
        if copy_seed is None
        else encode_rows(encoder, comparisons.train, copy_seed=copy_seed, on_rows=on_rows)
    )
    train = make_part(of_training, comparisons.train, "train", ignored)
    evaluation = parts("eval", comparisons.evaluation)
    test = parts("test", comparisons.test)
    held_out = [part.comparisons for part in (*evaluation.values(), *test.values())]
    return Corpus(
        train=train,
        evaluation=evaluation,
        test=test,
        loaded=comparisons.loaded,
        was_split=comparisons.was_split,
        leaked_prompts=sum(count_leaks(train.comparisons, rows) for rows in held_out),
    )


def ignored_labels(options: LossSection) -> frozenset[str]:
    """The labels of the data that the loss does not read."""
    read = OBJECTIVES[options.kind].options
    labels: tuple[Literal["margin", "soft_label"], ...] = ("margin", "soft_label")
    return frozenset(n for n in labels if n not in read or getattr(options, n) == "ignore")


def make_part(
    encoded: Encoded, rows: StoredComparisons, name: str, ignored: frozenset[str]
) -> Part:
    """The comparisons of ``rows`` that encode and can be learned from; the rest counted.

    Raises:
        DataError: nothing is left.
    """
    found = encoded.of(rows)
    if not len(found.comparisons):
        counts = ", ".join(
            f"{reason} {count}" for reason, count in Counter(found.dropped).most_common()
        )
        advice = (
            "raise tokens.max_length, set tokens.truncation to left, or inspect the data with"
            " plaudit data preview"
            if OVER_LENGTH in found.dropped
            else "inspect the data with plaudit data preview"
        )
        raise DataError(
            f"None of the {len(rows)} comparisons of the {name} data can be used"
            f" ({counts}{'; ' + found.example if found.example else ''}); {advice}."
        )
    return replace(found, trees=found.trees.without(ignored))


_MOST_LEVELS: Final = 20


def check_outputs(corpus: Corpus, options: LossSection) -> None:
    """Whether each output has something to learn, and a gate that learns.

    Raises:
        DataError: the training part has nothing for one of them, or a label is outside 0 to 1 for
            bce.
    """
    # They load torch, which reading data needs for nothing else.
    from plaudit.losses.labels import is_usable
    from plaudit.losses.outputs import view_of

    waiting, found = set(options.outputs), set[str]()
    gate = options.gate == "learned"
    objective = OBJECTIVES[options.kind]
    for number, tree in enumerate(corpus.train.trees):
        found |= tree.attributes.keys()
        gate = gate and len(set(tree.grades)) < 2
        views = {name: view_of(tree, name) for name in options.outputs}
        waiting -= {name for name, view in views.items() if is_usable(view, objective)}
        if options.kind != "bce":
            continue
        for name, view in views.items():
            # Comparisons with NaN, which is a missing number, are false.
            if wrong := [one for one in view.grades if view.rated and (one < 0 or one > 1)]:
                where = corpus.train.comparisons[number].where
                raise DataError(
                    f"{where}: {name} is {wrong[0]:g}, but loss.kind bce needs labels from 0 (bad)"
                    " to 1 (good); set loss.kind to mse or huber."
                )
    if waiting:
        known = f"they have {', '.join(sorted(found))}" if found else "they have no attributes"
        raise DataError(
            f"loss.outputs has {', '.join(sorted(waiting))}, but none of the"
            f" {len(corpus.train.trees):,} training comparisons has a label of it that"
            f" {options.kind} learns from ({known}); correct the name, or remove it."
        )
    if gate:
        raise DataError(
            "loss.gate is learned, which learns from the order of the responses, but none of the"
            f" {len(corpus.train.trees):,} training comparisons says which response is better;"
            " set loss.gate to mean or to weights."
        )


def check_ratings(corpus: Corpus, kind: str) -> None:
    """Whether the ratings are what a pointwise objective takes.

    Raises:
        DataError: the training part has none; a label outside 0 to 1 for bce; for ordinal one level
            or more than 20, or a rating in evaluation or test data that is no level of the training
            data.
    """
    if OBJECTIVES[kind].family != "pointwise":
        return
    if not corpus.train.trees.column("rated").any():
        raise DataError(
            f"loss.kind is {kind}, which learns from ratings, but none of the"
            f" {len(corpus.train.trees):,} training comparisons that are left after sampling,"
            " splitting and encoding has one; add rows with a rating, or set loss.kind to"
            " bradley_terry."
        )
    if kind == "bce":
        for grade, comparison in _rated(corpus.every):
            if not 0.0 <= grade <= 1.0:
                raise DataError(
                    f"{comparison().where}: the rating is {grade:g}, but loss.kind bce needs labels"
                    " from 0 (bad) to 1 (good); set loss.kind to mse, huber or ordinal."
                )
    if kind == "ordinal":
        levels = sorted({grade for grade, _ in _rated((corpus.train,))})
        if len(levels) == 1:
            raise DataError(
                f"Every rating of the training data is {levels[0]:g}, but loss.kind ordinal learns"
                " the order of several levels; add rows with other ratings."
            )
        if len(levels) > _MOST_LEVELS:
            raise DataError(
                f"The training data have {len(levels)} different ratings, but loss.kind ordinal"
                f" needs levels, {_MOST_LEVELS} at most; set loss.kind to mse or huber."
            )
        held_out = (*corpus.evaluation.values(), *corpus.test.values())
        for grade, comparison in _rated(held_out):
            if grade not in levels:
                raise DataError(
                    f"{comparison().where}: the rating is {grade:g}, which no training row has"
                    f" ({', '.join(f'{level:g}' for level in levels)}); loss.kind ordinal predicts"
                    " levels of the training data; remove the row, or set loss.kind to mse or"
                    " huber."
                )


def check_best_metric(corpus: Corpus, options: LossSection, asked: str | None) -> None:
    """Whether evaluations measure what chooses the checkpoint or stops training early.

    Raises:
        RecipeError: the evaluation data have no such metric.
    """
    parts = corpus.evaluation
    if asked is None or not parts:
        return
    rated = any(part.trees.column("rated").any() for part in parts.values())
    ordered = any(len(set(tree.grades)) > 1 for part in parts.values() for tree in part.trees)
    of_ratings = OBJECTIVES[options.kind].family == "pointwise"
    of_each = ["loss"] if ordered or of_ratings or options.outputs else []
    of_each += ["mae"] if of_ratings and rated and not options.outputs else []
    of_each += ["accuracy", "ties", "margin"] if ordered else []
    measured = [*of_each, *(["calibrated_loss"] if ordered else [])]
    of_sets = {f"{each}_{name}" for each in parts for name in of_each if len(parts) > 1}
    name = asked.removeprefix("eval_")
    if name not in measured and name not in of_sets:
        why = "" if ordered else ", because no pair of the evaluation data has a known order"
        known = ", ".join(f"eval_{each}" for each in measured)
        expected = f"expected one of {known}" if known else "add such pairs"
        raise RecipeError(f"train.metric_for_best_model: {asked} is not measured{why}; {expected}.")


def _rated(parts: Iterable[Part]) -> Iterator[tuple[float, Callable[[], Comparison]]]:
    """Every rating, and what reads its comparison."""
    for part in parts:
        for number in np.flatnonzero(part.trees.column("rated")).tolist():
            for grade in part.trees[number].grades:
                yield grade, partial(part.comparisons.__getitem__, number)


def plain_texts(corpus: Corpus) -> tuple[int, int]:
    """How many comparisons are plain text, and how many there are."""
    total = sum(len(part.trees) for part in corpus.every)
    return total - sum(int(part.trees.column("chat").sum()) for part in corpus.every), total


def text_kind(corpus: Corpus) -> Literal["chat", "text", "mixed"]:
    """What the chat template had to render."""
    texts, total = plain_texts(corpus)
    return "chat" if not texts else "text" if texts == total else "mixed"


def data_use(corpus: Corpus, split_by: str) -> RunData:
    """What became of everything that was read (law 6).

    ``split_by`` is the recipe's, or ``files`` where nothing had to be split. Rows are counted as
    they stand in the input; ``splits`` counts comparisons, after weights.
    """
    tallies = [loaded.tally for loaded in corpus.loaded.values()]
    lost = [part.lost for part in corpus.every]
    rows = sum(tally.rows for tally in tallies)
    used = sum(tally.used for tally in tallies) - sum(sum(reasons.values()) for reasons in lost)
    dropped = _summed([*(tally.dropped for tally in tallies), *lost])
    assert rows == used + sum(dropped.values()), "a row is unaccounted for"
    return RunData(
        rows=rows,
        used=used,
        dropped=dropped,
        splits={role: _split_use(parts) for role, parts in corpus.parts().items() if parts},
        split_by=split_by if corpus.was_split else "files",
        leaked_prompts=corpus.leaked_prompts,
        sources=tuple(
            replace(source, split=role.partition(":")[0])
            for role, loaded in corpus.loaded.items()
            for source in loaded.sources
        ),
        margins=_margin_use(corpus.every),
        tokens=_token_use(corpus.every),
    )


def _summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Counts by reason, added up."""
    total: Counter[str] = Counter()
    for reasons in counts:
        total.update(reasons)
    return dict(total)


def _split_use(parts: Sequence[Part]) -> SplitUse:
    used = sum(len(part.comparisons) for part in parts)
    dropped = _summed(part.dropped for part in parts)
    return SplitUse(
        rows=used + sum(dropped.values()),
        used=used,
        dropped=dropped,
        groups=sum(len(np.unique(part.comparisons.groups)) for part in parts),
    )


def _margin_use(parts: Sequence[Part]) -> MarginUse | None:
    """How many comparisons have a margin that the loss subtracts, and their mean; None for none."""
    margin_N = np.concatenate([part.trees.label("margin") for part in parts])
    margin_N = margin_N[margin_N != 0]
    if not len(margin_N):
        return None
    return MarginUse(comparisons=len(margin_N), mean=float(margin_N.mean()))


def _token_use(parts: Sequence[Part]) -> TokenUse:
    """Tokens computed, tokens of separate conversations, and what was cut to fit.

    ``truncated_responses`` have lost their end, and so the token that ends a turn; they belong to
    ``comparisons_with_truncated_responses``.
    """

    def column(name: str) -> npt.NDArray[np.int64]:
        return np.concatenate([part.trees.column(name) for part in parts]).astype(np.int64)

    truncated_N, cut_N = column("truncated"), column("truncated_responses")
    return TokenUse(
        packed=int(column("packed").sum()),
        separate=int(column("separate").sum()),
        longest=int(column("longest").max()),
        truncated_prompts=int(np.count_nonzero(truncated_N)),
        truncated_tokens=int(truncated_N.sum()),
        truncated_responses=int(cut_N.sum()),
        comparisons_with_truncated_responses=int(np.count_nonzero(cut_N)),
    )
