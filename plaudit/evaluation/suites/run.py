"""Benchmark suites on a model: files to rows, rows to rewards, rewards to numbers."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from plaudit.data.formats.readers import READERS
from plaudit.data.formats.values import Row, from_json, is_messages, listed, tools
from plaudit.data.reasons import is_blank
from plaudit.data.sources.files import FILE_KINDS
from plaudit.data.sources.read import read_rows, source_fingerprint
from plaudit.data.unread import TrackedRow, UnreadColumns, unread_text
from plaudit.errors import DataError, one_line
from plaudit.evaluation.analysis.features import response_text
from plaudit.evaluation.metrics.pairwise import percentile_interval, share_interval
from plaudit.evaluation.numbers import points
from plaudit.evaluation.schema import (
    Interval,
    SubsetScore,
    SuiteFile,
    SuiteResult,
    SuiteScore,
    json_safe,
)
from plaudit.evaluation.suites.table import SUITES, Answer, HubFiles, Item, Suite, key
from plaudit.evaluation.table import CodeArray, codes
from plaudit.recipe.schema import Source
from plaudit.storage.atomic import existing_path
from plaudit.types import (
    MEDIA,
    FloatArray,
    ScoreRow,
    Skipped,
    TokenTree,
    Turns,
    as_turns,
    has_media,
    media_columns,
)

if TYPE_CHECKING:
    from plaudit.reward_model import RewardModel

RESAMPLES = 1000
NOT_FINITE = "reward_not_finite"


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteRequest:
    """A suite to run, and the folder or file to read instead of the Hub."""

    suite: Suite
    path: Path | None


def parse_request(argument: str) -> SuiteRequest:
    """``NAME`` or ``NAME:PATH``.

    Raises:
        DataError: there is no such suite, or it has no copy on the Hub and no path was given.
    """
    name, _, path = argument.partition(":")
    suite = SUITES.get(name)
    if suite is None:
        raise DataError(f"unknown suite {name!r}; expected one of {', '.join(SUITES)}.")
    if not path and suite.hub is None:
        raise DataError(f"{suite.title} is not available on the Hub; {suite.where_from}.")
    local = existing_path(path) if path else None
    if path and local is None:
        raise DataError(f"--suite {argument}: {path} does not exist; expected a folder or a file.")
    return SuiteRequest(suite=suite, path=local)


def run_suite(
    model: RewardModel,
    request: SuiteRequest,
    *,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
    seed: int = 0,
) -> tuple[SuiteResult, tuple[ScoreRow, ...]]:
    """Read, score and measure one suite: its numbers and its rows of the score table.

    ``on_batch`` is called with tokens done and tokens in all.

    Raises:
        DataError: the files cannot be read as the suite's, or no row of them can be scored.
    """
    items, files = read_suite(request)
    answers, skipped = _score(model, items, on_batch)
    if not answers:
        counts = ", ".join(f"{reason} {count}" for reason, count in skipped.items())
        raise DataError(
            f"None of the {len(items)} rows of {request.suite.title} can be scored ({counts});"
            f" the maximum length of the model is {model.metadata.max_length} tokens."
        )
    result = score_suite(request.suite, items, answers, skipped, seed=seed)
    unread = UnreadColumns(
        rows=len(items),
        without_prompt=sum(is_blank(item.prompt) for item in items),
        columns=dict(Counter(name for item in items for name in item.unread)),
    )
    return (
        replace(result, files=tuple(files), unread=unread if request.suite.chats else None),
        tuple(_score_rows(request.suite.name, answers)),
    )


# ---- reading -------------------------------------------------------------------------------------


def read_suite(request: SuiteRequest) -> tuple[list[Item], list[SuiteFile]]:
    """All rows of a suite, and the files they came from with fingerprints.

    Raises:
        DataError: no file, or a row that is not the suite's (file and line are named).
    """
    suite = request.suite
    folder = request.path if request.path is not None else download(suite)
    paths = suite_files(suite, folder)
    root = folder if folder.is_dir() else folder.parent
    items: list[Item] = []
    for path in paths:
        is_task = path.name == "task.json"
        for where, row in _task_rows(path) if is_task else read_rows(Source(path=str(path))):
            try:
                read = partial(read_chat, suite) if suite.chats else suite.read
                item = read(row, len(items), PurePath(path.relative_to(root)))
            except DataError as error:
                raise DataError(f"{where}: as a row of {suite.title}, {error}") from error
            items.append(item)
    files = [
        SuiteFile(
            path=str(path.relative_to(root)),
            fingerprint=source_fingerprint(Source(path=str(path))),
        )
        for path in paths
    ]
    return items, files


def read_chat(suite: Suite, row: Row, number: int, path: PurePath) -> Item:
    """The item of a row that may hold messages, tools and media, under the rules of training data.

    Raises:
        DataError: a value of the wrong type, or a column that looks like a prompt and is not read.
    """
    tracked = TrackedRow(row)
    turns = _parse_turns(row, tracked)
    whole = TrackedRow({**row, **turns})
    item = suite.read(whole, number, path)
    tracked.looked_up |= whole.looked_up - turns.keys()
    holds_media = bool(media_columns(tracked)) or has_media(item.prompt, *item.responses)
    item = replace(
        item,
        tools=tools(tracked),
        chat_template_kwargs=from_json(tracked, "chat_template_kwargs", dict) or {},
        unusable=MEDIA if holds_media else None,
    )
    unread = unread_text(tracked, item)
    if unread.lost:
        name, kind = next(iter(unread.lost.items()))
        raise DataError(
            f"the column {name} looks like {kind}, but the suite does not read it; put its text"
            " into the messages of prompt, or remove the column."
        )
    return replace(item, unread=unread.others)


def _parse_turns(row: Row, tracked: TrackedRow) -> dict[str, Turns]:
    """The prompt and both answers of a row of messages as turns; nothing for a row of texts.

    Raises:
        DataError: the columns mix texts and messages in a way that no reader of chats knows.
    """
    for name in ("explicit_conversational", "implicit_conversational"):
        reader = READERS[name]
        if set(reader.columns) <= row.keys() and reader.recognises(row):
            parsed = reader.parse(tracked)
            chosen, rejected = parsed.responses
            return {"prompt": parsed.prompt, "chosen": chosen, "rejected": rejected}
    if any(is_messages(row.get(column)) for column in ("prompt", "chosen", "rejected")):
        raise DataError(
            f"the columns {listed(row)} mix text and messages; expected messages in prompt, or"
            " whole conversations in chosen and rejected."
        )
    return {}


def suite_files(suite: Suite, folder: Path) -> list[Path]:
    """The suite's data files in a folder (or the file itself), by the first pattern that finds any.

    Raises:
        DataError: there is none.
    """
    if folder.is_file():
        return [folder]
    for pattern in suite.files:
        paths = sorted(
            path
            for path in folder.glob(pattern)
            if path.is_file()
            and path.name.endswith(tuple(FILE_KINDS))
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        )
        if paths:
            return paths
    raise DataError(
        f"{folder} has no file of {suite.title}; expected {' or '.join(suite.files)}"
        f" ({', '.join(FILE_KINDS)})."
    )


def _task_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """A BIG-bench task: one object whose ``examples`` are the rows."""
    try:
        rows = [dict(row) for row in json.loads(path.read_text(encoding="utf-8"))["examples"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not a BIG-bench task ({error}); expected an object with a list named"
            " examples."
        ) from error
    for number, row in enumerate(rows, start=1):
        yield f"{path}:example {number}", row


def download(suite: Suite) -> Path:
    """The suite's files from the Hub, in its local cache.

    Raises:
        DataError: the Hub cannot be reached, or has no such files.
    """
    from huggingface_hub import snapshot_download

    hub = suite.hub
    assert isinstance(hub, HubFiles)
    try:
        folder = snapshot_download(
            hub.dataset,
            repo_type="dataset",
            revision=hub.revision,
            allow_patterns=list(hub.patterns),
        )
    except (OSError, ValueError) as error:
        raise DataError(
            f"{suite.title} ({hub.dataset}) cannot be downloaded from the Hub"
            f" ({one_line(error, 200)}); go online, or use a local copy: --suite"
            f" {suite.name}:FOLDER."
        ) from error
    return Path(folder)


# ---- scoring -------------------------------------------------------------------------------------


def _score(
    model: RewardModel, items: Sequence[Item], on_batch: Callable[[int, int], None]
) -> tuple[list[Answer], Counter[str]]:
    """Answers in the rows' order, and skipped rows by reason."""
    # A text is a user turn or an assistant turn, but for a model of plain text alone.
    comparisons = items if model.metadata.text == "text" else [as_turns(item) for item in items]
    outcomes = model.encode(comparisons)
    trees = [outcome for outcome in outcomes if isinstance(outcome, TokenTree)]
    skipped = Counter(outcome.reason for outcome in outcomes if isinstance(outcome, Skipped))
    total = sum(tree.tokens for tree in trees)
    done = 0

    def advance(batch: Sequence[TokenTree]) -> None:
        nonlocal done
        done += sum(tree.tokens for tree in batch)
        on_batch(done, total)

    prompts = [key(items[tree.index].prompt) for tree in trees]
    answers = []
    for tree, rewards_K in zip(
        trees, model.score_shared(trees, prompts, on_batch=advance), strict=True
    ):
        if np.isfinite(rewards_K).all():
            item = items[tree.index]
            answers.append(Answer(item=item, rewards_K=rewards_K, tokens=tuple(tree.lengths)))
        else:
            skipped[NOT_FINITE] += 1
    return answers, skipped


def _score_rows(name: str, answers: Sequence[Answer]) -> Iterator[ScoreRow]:
    for number, answer in enumerate(answers):
        item = answer.item
        for response, reward in enumerate(answer.rewards_K):
            yield ScoreRow(
                comparison=item.id,
                number=number,
                group=item.group,
                dataset=name,
                source=name,
                response=response,
                reward=float(reward),
                grade=item.grades[response],
                margin=0.0,
                tokens=answer.tokens[response],
                characters=len(response_text(item.responses[response])),
                metadata={"subset": item.subset, **item.metadata},
            )


# ---- numbers -------------------------------------------------------------------------------------


def score_suite(
    suite: Suite,
    items: Sequence[Item],
    answers: Sequence[Answer],
    skipped: Mapping[str, int],
    *,
    seed: int = 0,
) -> SuiteResult:
    """The suite's numbers: ``items`` are all rows read, ``answers`` those that were scored.

    ``skipped`` counts the others by reason.
    """
    cases_of = _cases_by_subset(suite, answers)
    numbers = suite.combine({subset: cases.means() for subset, cases in cases_of.items()})
    drawn = _bootstrap(suite, cases_of, seed)
    subsets = tuple(_subset_scores(suite, cases_of, items))
    # A subset's accuracy may be one of the numbers, and has one interval then.
    own = {subset.name: subset for subset in subsets if subset.accuracy is not None}
    remarks = tuple(map(json_safe, _remarks(suite, items, skipped)))
    return SuiteResult(
        suite=suite.name,
        title=suite.title,
        source=suite.source,
        rows=len(items),
        expected_rows=sum(suite.counts.values()) or None,
        used=len(answers),
        skipped=dict(skipped),
        comparable=not remarks,
        remarks=remarks,
        fixed_in_intervals=tuple(s for s, cases in cases_of.items() if not cases.group_C.any()),
        scores=tuple(
            SuiteScore(
                name=json_safe(name),
                value=json_safe(value),
                ci95=own[name].accuracy_ci95
                if name in own and own[name].accuracy == value
                else drawn.get(name),
                shown=points(json_safe(value)),
            )
            for name, value in numbers.items()
        ),
        subsets=subsets,
    )


class _Cases(NamedTuple):
    """The scored cases of a subset: their values by name, and the prompt group of each.

    A case may lack a value (a tie without its reference): it is nan, and out of the mean.
    """

    names: list[str]
    values_CV: FloatArray
    group_C: CodeArray

    def means(self, generator: np.random.Generator | None = None) -> dict[str, float]:
        """Means of the cases, or of prompt groups drawn again."""
        times_C = np.ones(len(self.group_C))
        if generator is not None:
            groups = int(self.group_C.max()) + 1
            drawn = generator.integers(groups, size=groups)
            times_C = np.bincount(drawn, minlength=groups)[self.group_C].astype(np.float64)
        known_CV = ~np.isnan(self.values_CV)
        total_V = times_C @ known_CV
        sum_V = times_C @ np.where(known_CV, self.values_CV, 0.0)
        with np.errstate(invalid="ignore"):
            mean_V = sum_V / total_V
        return dict(zip(self.names, mean_V.tolist(), strict=True))


def _cases_by_subset(suite: Suite, answers: Sequence[Answer]) -> dict[str, _Cases]:
    cases: dict[str, list[Answer]] = {}
    for answer in answers:
        cases.setdefault(answer.item.case, []).append(answer)
    credits_by_subset: dict[str, list[tuple[Mapping[str, float], str]]] = {}
    for case in cases.values():
        item = case[0].item
        credits_by_subset.setdefault(item.subset, []).append((suite.credit(case), item.group))
    by_subset = {}
    for subset, rows in credits_by_subset.items():
        names = list(dict.fromkeys(name for values, _ in rows for name in values))
        values_CV = [[values.get(name, math.nan) for name in names] for values, _ in rows]
        groups = codes([group for _, group in rows])
        by_subset[subset] = _Cases(names, np.array(values_CV), groups)
    return by_subset


def _bootstrap(
    suite: Suite, subsets: Mapping[str, _Cases], seed: int
) -> dict[str, Interval | None]:
    """Every number's interval under prompt groups drawn again, subset by subset.

    Without a subset of two prompts nothing can vary, and there are none.
    """
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {}
    for _ in range(RESAMPLES if any(cases.group_C.any() for cases in subsets.values()) else 0):
        means = {subset: cases.means(generator) for subset, cases in subsets.items()}
        for name, value in suite.combine(means).items():
            drawn.setdefault(name, []).append(value)
    return {name: percentile_interval(np.array(values)) for name, values in drawn.items()}


def _subset_scores(
    suite: Suite, subsets: Mapping[str, _Cases], items: Sequence[Item]
) -> Iterator[SubsetScore]:
    for subset, rows in Counter(item.subset for item in items).items():
        cases = subsets.get(subset, _Cases([], np.zeros((0, 0)), np.zeros(0, np.int64)))
        means, interval = cases.means(), None
        if "accuracy" in means:
            accuracy_C = cases.values_CV[:, cases.names.index("accuracy")]
            interval = share_interval(accuracy_C, cases.group_C)
        yield SubsetScore(
            name=json_safe(subset),
            rows=rows,
            expected_rows=suite.counts.get(subset),
            cases=len(cases.group_C),
            accuracy=json_safe(means.get("accuracy")),
            accuracy_ci95=interval and interval.shown,
            accuracy_ci95_method=interval and interval.method,
            values={name: json_safe(v) for name, v in means.items() if name != "accuracy"},
        )


def _remarks(suite: Suite, items: Sequence[Item], skipped: Mapping[str, int]) -> Iterator[str]:
    """What is there against what the suite is known to have, and what could not be scored."""
    counts = Counter(item.subset for item in items)
    wrong = [
        f"{subset}: {counts[subset]} of {expected}"
        for subset, expected in suite.counts.items()
        if counts[subset] != expected
    ]
    wrong += [
        f"{s}: {n}, not part of this suite" for s, n in counts.items() if s not in suite.counts
    ]
    if not suite.counts:
        yield "These files have no leaderboard."
    elif wrong:
        yield (
            f"{suite.title} has {sum(suite.counts.values()):,} rows, but these files have"
            f" {len(items):,} ({'; '.join(wrong)}), so the result is not comparable with the"
            " leaderboard."
        )
    if skipped:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in skipped.items())
        yield (
            f"{sum(skipped.values()):,} of {len(items):,} rows could not be scored ({reasons})"
            " and are not in any score."
        )
