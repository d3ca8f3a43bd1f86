"""Run benchmark suites on a model: files to rows, rows to rewards, rewards to numbers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from plaudit.data.formats.readers import READERS
from plaudit.data.formats.values import from_json, is_messages, listed, tools
from plaudit.data.reasons import is_blank
from plaudit.data.sources.files import FILE_KINDS
from plaudit.data.sources.read import read_rows, source_fingerprint
from plaudit.data.unread import TrackedRow, UnreadColumns, unread_text
from plaudit.errors import DataError
from plaudit.evaluation.analysis.baselines import response_text
from plaudit.evaluation.suites.cases import Answer, Item, Row, key
from plaudit.evaluation.suites.request import Request
from plaudit.evaluation.suites.score import score_suite
from plaudit.evaluation.suites.table import HubFiles, Suite
from plaudit.recipe.schema import Source
from plaudit.reward_model import RewardModel
from plaudit.types import (
    MEDIA,
    Comparison,
    FloatArray,
    Refused,
    ScoreRow,
    TokenTree,
    Turns,
    as_turns,
    has_media,
    media_columns,
)

NOT_FINITE = "reward_not_finite"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSuite:
    """A suite's block of ``metrics.json``, and its rows of the score table."""

    facts: dict[str, Any]
    rows: tuple[ScoreRow, ...]


def run_suite(
    model: RewardModel,
    request: Request,
    *,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
    seed: int = 0,
) -> RunSuite:
    """Read, score and measure one suite; ``on_batch`` hears tokens done and tokens in all.

    Raises:
        DataError: the files cannot be read as the suite's, or nothing of them can be scored.
    """
    items, files = read_suite(request)
    answers, refused, trees = _score(model, items, on_batch)
    if not answers:
        counts = ", ".join(f"{reason} {count}" for reason, count in refused.items())
        raise DataError(
            f"None of the {len(items)} rows of {request.suite.title} can be scored ({counts}); the "
            f"model reads at most {model.facts.max_length} tokens."
        )
    facts = score_suite(request.suite, items, answers, refused, seed=seed)
    if request.suite.chats:
        facts["unread"] = asdict(_unread_of(items))
    return RunSuite(
        facts={**facts, "files": files},
        rows=tuple(_score_rows(request.suite.name, answers, trees)),
    )


def _unread_of(items: Sequence[Item]) -> UnreadColumns:
    return UnreadColumns(
        rows=len(items),
        without_prompt=sum(is_blank(item.prompt) for item in items),
        columns=dict(Counter(name for item in items for name in item.unread)),
    )


# ---- reading -------------------------------------------------------------------------------------


def read_suite(request: Request) -> tuple[list[Item], list[dict[str, str]]]:
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
        for where, row in _rows(path):
            try:
                read = partial(read_chat, suite) if suite.chats else suite.read
                item = read(row, len(items), PurePath(path.relative_to(root)))
            except DataError as error:
                raise DataError(f"{where}: as a row of {suite.title}, {error}") from error
            if item is not None:
                items.append(item)
    shown = [
        {
            "path": str(path.relative_to(root)),
            "fingerprint": source_fingerprint(Source(path=str(path))),
        }
        for path in paths
    ]
    return items, shown


def read_chat(suite: Suite, row: Row, number: int, path: PurePath) -> Item | None:
    """The item of a row that may hold messages, tools and media, under the rules of training data.

    Raises:
        DataError: a value of the wrong type, or a column that looks like a prompt and is not read.
    """
    tracked = TrackedRow(row)
    turns = _parse_turns(row, tracked)
    whole = TrackedRow({**row, **turns})
    item = suite.read(whole, number, path)
    if item is None:
        return None
    tracked.looked_up |= whole.looked_up - turns.keys()
    holds_media = bool(media_columns(tracked)) or has_media(item.prompt, *item.responses)
    item = replace(
        item,
        tools=tools(tracked),
        chat_template_kwargs=from_json(tracked, "chat_template_kwargs", dict) or {},
        unusable=MEDIA if holds_media else None,
    )
    unread = unread_text(tracked, _comparison(item, item.responses))
    if unread.lost:
        name, kind = next(iter(unread.lost.items()))
        raise DataError(
            f"the column {name} looks like {kind}, but it is not read; put its text into the"
            " messages of prompt, or remove the column."
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
            f"the columns {listed(row)} mix texts and messages, expected messages in prompt, or "
            "whole conversations in chosen and rejected."
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
        found = sorted(path for path in folder.glob(pattern) if _is_data(path, folder))
        if found:
            return found
    raise DataError(
        f"{folder} holds no file of {suite.title}; expected {' or '.join(suite.files)} "
        f"({', '.join(FILE_KINDS)})."
    )


def _is_data(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.is_file() and not hidden and path.name.endswith(tuple(FILE_KINDS))


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.name == "task.json":
        yield from _task_rows(path)
        return
    yield from read_rows(Source(path=str(path)))


def _task_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """A BIG-bench task: one object whose ``examples`` are the rows."""
    try:
        task = json.loads(path.read_text(encoding="utf-8"))
        examples = task["examples"]
        rows = [dict(row) for row in examples]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read as a task ({error}); expected an object with a list named "
            "examples."
        ) from error
    for number, row in enumerate(rows, start=1):
        yield f"{path}:example {number}", row


def download(suite: Suite) -> Path:
    """The suite's files from the Hub, in its local cache.

    Raises:
        DataError: the Hub cannot be reached, or has no such files.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    hub = suite.hub
    assert isinstance(hub, HubFiles)
    try:
        folder = snapshot_download(
            hub.dataset,
            repo_type="dataset",
            revision=hub.revision,
            allow_patterns=list(hub.patterns),
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise DataError(
            f"{suite.title} ({hub.dataset}) cannot be fetched from the Hub "
            f"({' '.join(str(error).split())[:200].rstrip('.')}); go online, or name a copy: "
            f"--suite {suite.name}:FOLDER."
        ) from error
    return Path(folder)


# ---- scoring -------------------------------------------------------------------------------------


def _score(
    model: RewardModel, items: Sequence[Item], on_batch: Callable[[int, int], None]
) -> tuple[list[Answer], Counter[str], dict[int, tuple[int, ...]]]:
    """Answers in the rows' order, refusals by reason, and conversation lengths by row number.

    A prompt is computed once for all distinct responses that any row has for it. Where these do not
    all fit, its rows are encoded one by one, so that a long answer costs only its own row.
    """
    together: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        together.setdefault(_context(item), []).append(number)
    merged = [
        _for_model(model, items[n[0]], _distinct([items[i] for i in n])) for n in together.values()
    ]
    outcomes = model.encode(merged)
    jobs: list[tuple[TokenTree, list[str], list[int]]] = []
    refused: Counter[str] = Counter()
    for outcome, numbers in zip(outcomes, together.values(), strict=True):
        if isinstance(outcome, TokenTree):
            responses = _distinct([items[number] for number in numbers])
            jobs.append((outcome, list(map(key, responses)), numbers))
            continue
        for number in numbers:
            item = items[number]
            (alone,) = model.encode([_for_model(model, item, item.responses)])
            if isinstance(alone, Refused):
                refused[alone.reason] += 1
            else:
                jobs.append((alone, list(map(key, item.responses)), [number]))
    total = sum(tree.tokens for tree, _, _ in jobs)
    done = 0

    def advance(trees: Sequence[TokenTree]) -> None:
        nonlocal done
        done += sum(tree.tokens for tree in trees)
        on_batch(done, total)

    rewards = model.score_trees([tree for tree, _, _ in jobs], on_batch=advance)
    answered: dict[int, FloatArray] = {}
    lengths: dict[int, tuple[int, ...]] = {}
    for (tree, texts, numbers), rewards_K in zip(jobs, rewards, strict=True):
        place = {text: index for index, text in reversed(list(enumerate(texts)))}
        for number in numbers:
            own = [place[key(response)] for response in items[number].responses]
            if not np.isfinite(rewards_K[own]).all():
                refused[NOT_FINITE] += 1
                continue
            answered[number] = rewards_K[own]
            lengths[number] = tuple(tree.lengths[index] for index in own)
    answers = [
        Answer(item=items[number], rewards_K=answered[number]) for number in sorted(answered)
    ]
    ordered = {place: lengths[number] for place, number in enumerate(sorted(answered))}
    return answers, refused, ordered


def _distinct(items: Sequence[Item]) -> tuple[Turns, ...]:
    found = {key(response): response for item in items for response in item.responses}
    return tuple(found.values())


def _context(item: Item) -> str:
    """Equal for items whose responses follow the same prompt, with the same tools."""
    beside = item.tools, item.chat_template_kwargs, item.unusable
    return json.dumps([key(item.prompt), *beside], sort_keys=True, default=str)


def _for_model(model: RewardModel, item: Item, responses: Sequence[Turns]) -> Comparison:
    """Messages; a text is a user turn or an assistant turn, but for a model of plain text alone."""
    comparison = _comparison(item, responses)
    return comparison if model.facts.text == "text" else as_turns(comparison)


def _comparison(item: Item, responses: Sequence[Turns]) -> Comparison:
    return Comparison(
        id=item.id,
        prompt=item.prompt,
        responses=tuple(responses),
        grades=(),
        group=item.group,
        source="suite",
        where=item.id,
        tools=item.tools,
        chat_template_kwargs=item.chat_template_kwargs,
        unusable=item.unusable,
    )


def _score_rows(
    name: str, answers: Sequence[Answer], lengths: dict[int, tuple[int, ...]]
) -> Iterator[ScoreRow]:
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
                tokens=lengths[number][response],
                characters=len(response_text(item.responses[response])),
                metadata={"subset": item.subset, **item.metadata},
            )
