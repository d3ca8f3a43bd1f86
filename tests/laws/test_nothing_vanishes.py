"""Law 6 for contents: what is not read as text has one outcome on every path, counted by name."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from plaudit.cli.main import main
from plaudit.client import AsyncRewardClient, RewardClient
from plaudit.data.formats.readers import READERS, to_comparison
from plaudit.data.load import load_comparisons as load_rows
from plaudit.data.unread import UnreadColumns
from plaudit.errors import DataError, RequestRejectedError
from plaudit.evaluate_model import evaluate, score_comparisons
from plaudit.evaluation.suites.run import parse_request, run_suite
from plaudit.recipe.schema import Source
from plaudit.reward_model import RewardModel, load
from plaudit.score_file import score_file
from plaudit.training.run import train
from plaudit.types import Skipped
from tests.conftest import pair_rows, recipe_of, write_jsonl
from tests.servers import Running, running

pytestmark = pytest.mark.heavy

# As many templates: it knows three roles and their text, and passes over everything else.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role in ['system', 'user', 'assistant'] %}"
    "{{ '<|' ~ message.role ~ '|>' ~ message.content ~ eos_token }}"
    "{% endif %}{% endfor %}"
)
CALL = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "utc"}}}
TOOL = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}
PIXEL = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """An edge row: its messages, its further columns, and what becomes of it.

    ``outcome`` is a reason, or ``used``; a row that is used has the rewards of the row of texts
    ``same_as`` where that is given. ``says`` stands in the error of a single conversation.
    """

    prompt: list[dict[str, Any]]
    chosen: list[dict[str, Any]]
    outcome: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    same_as: str | None = None
    says: str = ""

    @property
    def row(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "chosen": self.chosen,
            "rejected": [says("assistant", "No idea.")],
            **self.columns,
        }


def says(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def text(value: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **more}


ASKED, NINE = [says("user", "What time is it?")], [says("assistant", "Nine.")]
TOOL_TURNS = [*ASKED, says("assistant", "I look."), says("tool", "9", tool_call_id="1")]

EDGES: dict[str, Edge] = {
    "texts": Edge(prompt=ASKED, chosen=NINE, outcome="used"),
    "one part": Edge(
        prompt=[says("user", [text("What time is it?", image=None)])],
        chosen=[says("assistant", [text("Nine.")])],
        columns={"note": "An aside."},
        outcome="used",
        same_as="texts",
    ),
    "two lines": Edge(prompt=ASKED, chosen=[says("assistant", "Nine.\nOr ten.")], outcome="used"),
    "two parts": Edge(
        prompt=ASKED,
        chosen=[says("assistant", [{"type": "output_text", "text": "Nine."}, "Or ten."])],
        outcome="used",
        same_as="two lines",
    ),
    "metadata and nulls": Edge(
        prompt=ASKED,
        chosen=[says("assistant", "Nine.", name="bot", score=3, tool_calls=None, thinking=" ")],
        columns={"images": [], "video": None, "tools": [], "image": 5},
        outcome="used",
        same_as="texts",
    ),
    "an image": Edge(
        prompt=[says("user", [PIXEL, text("What time is it?")])],
        chosen=NINE,
        outcome="media",
        says="images",
    ),
    "audio": Edge(
        prompt=ASKED,
        chosen=[says("assistant", [{"type": "input_audio", "input_audio": {"data": ""}}])],
        outcome="media",
        says="audio",
    ),
    "an image column": Edge(
        prompt=ASKED, chosen=NINE, columns={"images": ["a.png"]}, outcome="media", says="images"
    ),
    "a video column": Edge(
        prompt=ASKED, chosen=NINE, columns={"videos": ["a.mp4"]}, outcome="media", says="video"
    ),
    "tool calls": Edge(
        prompt=ASKED,
        chosen=[says("assistant", None, tool_calls=[CALL])],
        outcome="not_rendered",
        says="tool_calls of turn 2 (assistant)",
    ),
    "reasoning": Edge(
        prompt=ASKED,
        chosen=[says("assistant", "Nine.", reasoning_content="The sun is low.")],
        outcome="not_rendered",
        says="reasoning_content of turn 2",
    ),
    "a tool's answer": Edge(
        prompt=TOOL_TURNS, chosen=NINE, outcome="not_rendered", says="turn 3 (tool)"
    ),
    "tools": Edge(
        prompt=ASKED, chosen=NINE, columns={"tools": [TOOL]}, outcome="not_rendered", says="tools"
    ),
}
SKIPPED = Counter(edge.outcome for edge in EDGES.values() if edge.outcome != "used")
UNRENDERED = {"tool_calls": 1, "reasoning_content": 1, "content of tool": 1, "tools": 1}


@pytest.fixture(scope="module")
def edges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [edge.row for edge in EDGES.values()]
    return write_jsonl(tmp_path_factory.mktemp("edges") / "edges.jsonl", rows)


@pytest.fixture(scope="module")
def run(tiny_base: Path, edges: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on plain pairs and the edge rows."""
    folder = tmp_path_factory.mktemp("content")
    (folder / "template.jinja").write_text(TEMPLATE)
    plain = write_jsonl(folder / "plain.jsonl", pair_rows(24))
    recipe = recipe_of(tiny_base, plain, num_train_epochs=1)
    recipe["data"]["train"] = [str(plain), str(edges)]
    recipe["tokens"]["chat_template"] = str(folder / "template.jinja")
    recipe["evaluate"] = {"perturbation_tests": 0}
    train(recipe, folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def model(run: Path) -> RewardModel:
    return load(run)


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[Running]:
    with running(run) as found:
        yield found


@pytest.fixture(scope="module")
def scored(
    model: RewardModel, run: Path, edges: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """The rows of the scored file by name."""
    out = tmp_path_factory.mktemp("scored") / "out.jsonl"
    done = score_file(model, Source(path=str(edges)), out)
    assert done.skipped == SKIPPED
    assert done.rows == done.scored + sum(done.skipped.values()) == len(EDGES)
    lines = out.read_text(encoding="utf-8").splitlines()
    return dict(zip(EDGES, map(json.loads, lines), strict=True))


def test_training_counts_every_row(run: Path) -> None:
    facts = json.loads((run / "metrics.json").read_text())["data"]
    assert facts["dropped"] == SKIPPED
    assert facts["rows"] == facts["used"] + sum(SKIPPED.values()) == 24 + len(EDGES)


@pytest.mark.parametrize("name", EDGES)
def test_a_file_has_a_reward_or_a_reason(name: str, scored: dict[str, dict[str, Any]]) -> None:
    edge, row = EDGES[name], scored[name]
    assert row.get("rewards_reason", "used") == edge.outcome
    assert (row["rewards"] is None) == (edge.outcome != "used")
    if edge.same_as is not None:
        assert row["rewards"] == pytest.approx(scored[edge.same_as]["rewards"], abs=1e-5)


@pytest.mark.parametrize("name", [name for name, edge in EDGES.items() if not edge.columns])
def test_python_has_the_file_s_outcome(
    name: str, model: RewardModel, scored: dict[str, dict[str, Any]]
) -> None:
    edge = EDGES[name]
    responses = [edge.chosen, edge.row["rejected"]]
    if edge.outcome == "used":
        found = model.score(edge.prompt, responses)
        assert found == pytest.approx(scored[name]["rewards"], abs=1e-5)
        return
    with pytest.raises(DataError) as raised:
        model.score(edge.prompt, responses)
    assert edge.says in str(raised.value)


def test_what_is_no_message_is_named(model: RewardModel) -> None:
    with pytest.raises(
        DataError, match=r"^responses\[1\] is null; expected text or a list of messages"
    ):
        model.score("Time?", ["Nine.", None])
    with pytest.raises(DataError, match=r"^prompt\[0\] is text; expected a message with role"):
        model.score(["Time?"], ["Nine."])  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"^tools\[0\] is text; expected an object"):
        model.score(ASKED, ["Nine."], tools=["clock"])  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"^prompt\[0\] has no role \(found: content\)"):
        model.score([{"content": "Time?"}], ["Nine."])


@pytest.mark.parametrize("name", EDGES)
def test_http_has_the_file_s_outcome(
    name: str, server: Running, scored: dict[str, dict[str, Any]]
) -> None:
    edge = EDGES[name]
    responses = [edge.chosen, edge.row["rejected"]]
    body = {"prompt": edge.prompt, "responses": responses, **edge.columns}
    bodies = {
        "/v1/rewards": body,
        "/v1/compare": {**body, "a": responses[0], "b": responses[1]},
        "/pooling": {"messages": [*edge.prompt, *edge.chosen], **edge.columns},
    }
    for path, sent in bodies.items():
        response = server.post(path, sent)
        if edge.outcome != "used":
            error = response.json()["error"]
            assert (response.status_code, error["type"]) == (422, "invalid_request"), path
            assert edge.says in error["message"], path
        else:
            answer = response.json()
            found = answer["rewards"] if "rewards" in answer else answer["data"][0]["data"]
            expected = scored[name]["rewards"][: len(found)]
            assert found == pytest.approx(expected, abs=1e-5), path


def test_the_client_has_the_file_s_outcome(
    server: Running, scored: dict[str, dict[str, Any]]
) -> None:
    parts, image = EDGES["two parts"], EDGES["an image"]
    rejected = parts.row["rejected"]
    with RewardClient(server.url) as client:
        found = client.score(parts.prompt, [parts.chosen, rejected])
        assert found == pytest.approx(scored["two parts"]["rewards"], abs=1e-5)
        with pytest.raises(RequestRejectedError, match=image.says) as raised:
            client.score(image.prompt, [image.chosen, rejected])
    assert raised.value.status == 422


def test_tools_have_the_file_s_outcome_in_python(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = EDGES["tools"].row
    responses = [row["chosen"], row["rejected"]]
    with pytest.raises(DataError, match="tools"):
        model.score(ASKED, responses, tools=[TOOL])

    rendering_tools = "{{ tools | tojson if tools }}" + TEMPLATE
    monkeypatch.setattr(model.encoder.tokenizer, "chat_template", rendering_tools)
    (in_file,) = model.score_comparisons(
        [to_comparison(READERS["explicit_conversational"], row, number=1, where="", source="")]
    )
    assert not isinstance(in_file, Skipped)
    rewards = model.score(ASKED, responses, tools=(TOOL,))
    assert rewards == in_file.tolist()
    assert rewards != model.score(ASKED, responses)
    assert model.score_many([(ASKED, responses)], tools=[TOOL]) == [rewards]
    assert list(model.best_of(ASKED, responses, tools=[TOOL]).rewards) == rewards
    assert model.token_rewards(ASKED, responses[0], tools=[TOOL])[-1].reward == pytest.approx(
        rewards[0], abs=1e-5
    )
    probability = 1 / (1 + math.exp((rewards[1] - rewards[0]) / (model.metadata.temperature or 1)))
    assert model.prefer(ASKED, *responses, tools=[TOOL]) == pytest.approx(probability)


def test_tools_have_the_file_s_outcome_through_the_clients(server: Running) -> None:
    row = EDGES["tools"].row
    responses = row["chosen"], row["rejected"]

    def asks(client: RewardClient | AsyncRewardClient) -> Iterator[Any]:
        yield lambda: client.score(ASKED, responses, tools=[TOOL])
        yield lambda: client.best_of(ASKED, responses, tools=[TOOL])
        yield lambda: client.prefer(ASKED, *responses, tools=[TOOL])
        yield lambda: client.token_rewards(ASKED, responses[0], tools=[TOOL])

    async def ask_async() -> None:
        async with AsyncRewardClient(server.url) as client:
            for ask in asks(client):
                with pytest.raises(RequestRejectedError, match="tools"):
                    await ask()
            (row,) = await client.score_many([(ASKED, responses)], tools=[TOOL])
            assert isinstance(row, RequestRejectedError)

    asyncio.run(ask_async())
    with RewardClient(server.url) as client:
        for ask in asks(client):
            with pytest.raises(RequestRejectedError, match="tools"):
                ask()
        (outcome,) = client.score_many([(ASKED, responses)], tools=[TOOL])
        assert isinstance(outcome, RequestRejectedError)


def test_a_suite_of_pairs_counts_every_row(model: RewardModel, edges: Path) -> None:
    result, _ = run_suite(model, parse_request(f"pairs:{edges}"))
    assert result.skipped == SKIPPED
    assert result.unread == UnreadColumns(rows=len(EDGES), columns={"note": 1})
    assert result.used + sum(SKIPPED.values()) == result.rows == len(EDGES)


def test_evaluation_and_comparison_count_every_row(model: RewardModel, edges: Path) -> None:
    found = evaluate(model, edges)
    assert found.metrics.data.dropped == SKIPPED
    loaded = load_rows([Source(path=str(edges))], seed=0)
    _, _, refused = score_comparisons(model, loaded.comparisons, Console(quiet=True))
    assert Counter(loaded.tally.dropped) + Counter(refused) == SKIPPED


def test_the_audit_counts_every_row(
    run: Path, edges: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "audit", str(edges), "--tokenizer", str(run), "--json"]) == 0
    shown = capsys.readouterr()
    facts = json.loads(shown.out)
    findings = {finding["check"]: finding for finding in facts["findings"]}
    assert {name: findings[name]["rows"] for name in SKIPPED} == SKIPPED
    assert findings["not_rendered"]["details"]["fields"] == UNRENDERED
    assert findings["template_error"]["rows"] == 0
    assert findings["more_than_text"]["rows"] is None, "the tokenizer has said which are rendered"
    assert facts["trainable"] == {"rows": len(EDGES) - sum(SKIPPED.values()), "skipped": SKIPPED}
    assert "tool_calls 1" in " ".join(shown.err.split())

    assert main(["data", "audit", str(edges), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    findings = {finding["check"]: finding for finding in facts["findings"]}
    assert findings["media"]["rows"] == SKIPPED["media"]
    assert findings["more_than_text"]["rows"] == SKIPPED["not_rendered"]
    assert findings["not_rendered"]["rows"] is None


def test_the_preview_says_what_is_skipped(
    run: Path, edges: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["--rows", str(len(EDGES))]
    assert main(["data", "preview", str(edges), "--model", str(run), *rows]) == 0
    shown = capsys.readouterr().out
    for reason, count in SKIPPED.items():
        assert shown.count(f"Not encoded ({reason}): ") == count
    assert "Training drops it" not in shown
    words = " ".join(shown.split())
    for edge in EDGES.values():
        assert edge.says in words


# ---- parts that nothing can be made of --------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "hologram"}, "of type 'hologram'; expected one of text,"),
        ({"type": "text"}, "the column text is missing"),
        ({"type": "text", "text": 3}, "text is a number; expected text"),
        ({"type": 3}, "type is a number; expected"),
        ({"image_url": "a.png"}, "type is null; expected"),
        (3, "is a number; expected a content part"),
    ],
)
def test_a_part_of_another_kind_is_an_error_with_its_place(
    part: Any, expected: str, model: RewardModel, server: Running, tmp_path: Path
) -> None:
    prompt = [says("user", [text("Is this one?"), part])]
    path = write_jsonl(tmp_path / "odd.jsonl", [{**EDGES["texts"].row, "prompt": prompt}])
    with pytest.raises(DataError) as in_file:
        load_rows([Source(path=str(path))], seed=0)
    with pytest.raises(DataError) as in_python:
        model.score(prompt, [NINE])
    sentence = str(in_python.value)
    assert sentence.startswith("prompt[0].content[1]")
    assert expected in sentence
    assert str(in_file.value) == f"{path}:1: {sentence}"
    response = server.post("/v1/rewards", {"prompt": prompt, "responses": [NINE]})
    assert response.status_code == 422
    assert response.json()["error"]["type"] == "invalid_request"
    if isinstance(part, dict):
        assert response.json()["error"]["message"] == sentence
