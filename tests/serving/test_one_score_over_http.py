"""Law 3 over HTTP: in any protocol, alone or under load, a text has the score it has in a file."""

from __future__ import annotations

import base64
import json
import random
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from plaudit.recipe.schema import Source
from plaudit.reward_model import RewardModel, load
from plaudit.score_file import score_file
from plaudit.serving.protocols.table import PROTOCOLS
from tests.conftest import pair_rows, recipe_of, write_jsonl
from tests.servers import Running, running

pytestmark = pytest.mark.heavy
CLOSE = pytest.approx
ROWS = pair_rows(6, seed=11)


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt and its responses: as turns, as their texts, and rendered by the template."""

    prompt: list[dict[str, Any]]
    responses: list[list[dict[str, Any]]]
    rendered: list[str]
    ids: list[list[int]]
    rewards: list[float]

    @property
    def question(self) -> str:
        return str(self.prompt[0]["content"])

    @property
    def answers(self) -> list[str]:
        return [str(response[0]["content"]) for response in self.responses]


@pytest.fixture(scope="module")
def server(finished_run: Path) -> Iterator[Running]:
    with running(finished_run) as found:
        yield found


@pytest.fixture(scope="module")
def rows(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Scored from a file, which is what every protocol is compared with."""
    model = load(finished_run)
    folder = tmp_path_factory.mktemp("http")
    out = folder / "scored.jsonl"
    score_file(model, Source(path=str(write_jsonl(folder / "in.jsonl", ROWS))), out)
    return [as_row(model, json.loads(line)) for line in out.read_text().splitlines()]


def as_row(model: RewardModel, scored: Mapping[str, Any]) -> Row:
    responses = [scored["chosen"], scored["rejected"]]
    rendered = [
        str(model.tokenizer.apply_chat_template([*scored["prompt"], *r], tokenize=False))
        for r in responses
    ]
    ids = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in rendered]
    return Row(scored["prompt"], responses, rendered, ids, scored["rewards"])


@dataclass(frozen=True, slots=True)
class Way:
    """One form of a request, where it goes, and where its answer has the rewards of a row."""

    path: str
    body: Callable[[Row], dict[str, Any]]
    rewards: Callable[[Any], Sequence[float]]


def by_index(results: Sequence[Mapping[str, Any]]) -> list[float]:
    found = sorted(results, key=lambda result: result["index"])
    assert results == sorted(results, key=lambda result: -result["relevance_score"])
    return [result["relevance_score"] for result in found]


def decoded(value: str) -> float:
    return float(struct.unpack("<f", base64.b64decode(value))[0])


WITHOUT_START = "<s>"
"""What verl takes off the front of a text."""

WAYS: dict[str, list[Way]] = {
    "rewards": [
        Way(
            "/v1/rewards",
            lambda r: {"prompt": r.prompt, "responses": r.responses},
            lambda a: a["rewards"],
        ),
        Way(
            "/v1/rewards",
            lambda r: {"prompt": r.question, "responses": r.answers},
            lambda a: a["rewards"],
        ),
        Way(
            "/v1/rewards",
            lambda r: {"prompt": r.prompt, "responses": r.answers},
            lambda a: a["rewards"],
        ),
        Way(
            "/v1/rewards",
            lambda r: {"prompt": r.question, "responses": r.answers, "token_rewards": True},
            lambda a: [steps[-1]["reward"] for steps in a["token_rewards"]],
        ),
    ],
    "compare": [
        Way(
            "/v1/compare",
            lambda r: {"prompt": r.prompt, "a": r.responses[0], "b": r.responses[1]},
            lambda a: a["rewards"],
        ),
    ],
    "openrlhf": [
        Way("/get_reward", lambda r: {"query": r.rendered}, lambda a: a["rewards"]),
        Way(
            "/get_reward",
            lambda r: {
                "query": [f"<pad><pad>{t}</s><pad>" for t in r.rendered],
                "prompts": ["", ""],
            },
            lambda a: a["scores"],
        ),
    ],
    "llama_factory": [
        Way(
            "/v1/score/evaluation",
            lambda r: {"model": "model", "messages": r.rendered},
            lambda a: a["scores"],
        ),
    ],
    "classify": [
        Way(
            "/classify",
            lambda r: {
                "model": "any",
                "input": [t.removeprefix(WITHOUT_START) for t in r.rendered],
                "activation": False,
            },
            lambda a: [datum["probs"][-1] for datum in a["data"]],
        ),
        Way("/classify", lambda r: {"input": r.ids}, lambda a: [d["probs"][0] for d in a["data"]]),
        Way("/classify", lambda r: {"text": r.rendered}, lambda a: [e["embedding"][0] for e in a]),
        Way("/classify", lambda r: {"input_ids": r.ids}, lambda a: [e["embedding"][0] for e in a]),
    ],
    "encode": [
        Way("/encode", lambda r: {"text": r.rendered}, lambda a: [e["embedding"][0] for e in a]),
    ],
    "pooling": [
        Way(
            "/pooling", lambda r: {"input": r.rendered}, lambda a: [d["data"][0] for d in a["data"]]
        ),
        Way(
            "/pooling",
            lambda r: {"input": r.rendered, "encoding_format": "base64"},
            lambda a: [decoded(d["data"]) for d in a["data"]],
        ),
    ],
    "embeddings": [
        Way(
            "/v1/embeddings",
            lambda r: {"model": "any", "input": r.rendered},
            lambda a: [d["embedding"][0] for d in a["data"]],
        ),
    ],
    "score": [
        Way(
            "/score",
            lambda r: {"queries": r.question, "documents": r.answers},
            lambda a: [d["score"] for d in a["data"]],
        ),
        Way(
            "/v1/score",
            lambda r: {"text_1": [r.question] * 2, "text_2": r.answers},
            lambda a: [d["score"] for d in a["data"]],
        ),
        Way(
            "/v1/score",
            lambda r: {"query": "", "items": r.rendered},
            lambda a: [score[0] for score in a["scores"]],
        ),
    ],
    "rerank": [
        Way(
            path,
            lambda r: {"query": r.question, "documents": r.answers},
            lambda a: by_index(a["results"]),
        )
        for path in ("/rerank", "/v1/rerank", "/v2/rerank")
    ],
}

EVERY_WAY = [way for ways in WAYS.values() for way in ways]


def test_every_protocol_and_path_is_compared() -> None:
    assert WAYS.keys() == PROTOCOLS.keys()
    assert {way.path for way in EVERY_WAY} == {
        path for protocol in PROTOCOLS.values() for path in protocol.paths
    }


def check(server: Running, way: Way, row: Row) -> None:
    response = server.post(way.path, way.body(row))
    assert response.status_code == 200, response.text
    assert way.rewards(response.json()) == CLOSE(row.rewards, abs=1e-5)


@pytest.mark.parametrize("name", WAYS)
def test_alone(name: str, server: Running, rows: list[Row]) -> None:
    for way in WAYS[name]:
        check(server, way, rows[0])


@pytest.mark.parametrize("cached_scores", [0, 1 << 16])
def test_of_many_clients_at_once(cached_scores: int, finished_run: Path, rows: list[Row]) -> None:
    """Every protocol's requests merged into common batches, prompts shared across them.

    Without kept scores, from what earlier batches have read.
    """
    work = [(way, row) for way in EVERY_WAY for row in rows]
    random.Random(0).shuffle(work)
    with (
        running(finished_run, cached_scores=cached_scores) as server,
        ThreadPoolExecutor(16) as pool,
    ):
        list(pool.map(lambda pair: check(server, *pair), work))
        metrics = server.get("/metrics").text
    (reused,) = re.findall(r"^plaudit_tokens_reused_total (\S+)$", metrics, re.MULTILINE)
    assert (float(reused) > 100) == (cached_scores == 0)


def test_one_chat_as_messages(server: Running, rows: list[Row]) -> None:
    row = rows[1]
    for path, read in (
        ("/classify", lambda a: a["data"][0]["probs"][0]),
        ("/pooling", lambda a: a["data"][0]["data"][0]),
    ):
        answer = server.post(path, {"messages": [*row.prompt, *row.responses[0]]}).json()
        assert read(answer) == CLOSE(row.rewards[0], abs=1e-5)


def test_scores_differ_between_rows(rows: list[Row]) -> None:
    rewards = [reward for row in rows for reward in row.rewards]
    assert max(rewards) - min(rewards) > 1e-3


def test_a_text_model_reads_texts_as_its_files_do(tiny_base: Path, tmp_path: Path) -> None:
    """Plain prompt and response; written whole, the end token is there once either way."""
    from plaudit.training.run import train

    texts = [
        {side: row[side][0]["content"] + " " for side in ("prompt", "chosen", "rejected")}
        for row in pair_rows(24, seed=3)
    ]
    recipe = recipe_of(tiny_base, write_jsonl(tmp_path / "texts.jsonl", texts), max_steps=2)
    train(recipe, tmp_path / "text")
    model = load(tmp_path / "text")
    row = texts[0]
    expected = model.score(row["prompt"], [row["chosen"], row["rejected"]])
    whole = [row["prompt"] + row["chosen"], row["prompt"] + row["rejected"] + "</s>"]
    with running(tmp_path / "text") as server:
        found = [
            server.post(
                "/v1/rewards",
                {"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"]]},
            ).json()["rewards"],
            server.post("/get_reward", {"query": whole}).json()["rewards"],
            [
                d["score"]
                for d in server.post(
                    "/score",
                    {"queries": row["prompt"], "documents": [row["chosen"], row["rejected"]]},
                ).json()["data"]
            ],
        ]
    for rewards in found:
        assert rewards == CLOSE(expected, abs=1e-5)
