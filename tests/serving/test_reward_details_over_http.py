"""Outputs, spread and lower bound over HTTP: as in Python, and errors where a model has none."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from plaudit.client import AsyncRewardClient, RewardClient
from plaudit.errors import RequestRejectedError
from plaudit.reward_model import load
from plaudit.types import RewardDetails
from tests.conftest import set_metadata
from tests.models import FIVE_HEADS, THREE, saved_with_outputs
from tests.servers import Running, running

pytestmark = pytest.mark.heavy

PROMPT, RESPONSES = "what is it?", ["it is forty two", "no idea at all", "it is forty two"]
BODY = {"prompt": PROMPT, "responses": RESPONSES}


@pytest.fixture(scope="module")
def ensemble(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "ensemble"
    return saved_with_outputs(folder, tiny_base, lora=True, outputs=FIVE_HEADS)


@pytest.fixture(scope="module")
def attributes(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_with_outputs(
        tmp_path_factory.mktemp("models") / "attributes", tiny_base, lora=False
    )


@pytest.fixture(scope="module")
def server(ensemble: Path, attributes: Path, finished_run: Path) -> Iterator[Running]:
    with running(ensemble, attributes, finished_run, lower_bound_k=2.0) as found:
        yield found


def close(found: RewardDetails, expected: RewardDetails) -> None:
    for name, value in asdict(expected).items():
        assert getattr(found, name) == (
            value if value is None else pytest.approx(value, abs=1e-5)
        ), name


def test_answers_hold_what_python_returns(server: Running, ensemble: Path) -> None:
    expected = load(ensemble, lower_bound_k=2).score(
        PROMPT, RESPONSES, outputs=True, uncertainty=True
    )
    answers = [
        server.post("/v1/rewards", {**BODY, "outputs": True, "uncertainty": True}).json()
        # The second time from the cache.
        for _ in range(2)
    ]
    names = ("outputs", "mean", "spread", "lower_bound")
    for answer in answers:
        for k, one in enumerate(expected):
            fields = {name: answer[name][k] for name in names}
            close(RewardDetails(reward=answer["rewards"][k], **fields), one)
        assert all(answer[name][0] == answer[name][2] for name in names)
    assert answers[1]["usage"]["computed_tokens"] == 0
    plain = server.post("/v1/rewards", BODY).json()
    assert plain["rewards"] == answers[0]["rewards"]
    assert [plain[name] for name in names] == [None] * 4


def test_a_model_that_has_none_rejects_the_request(server: Running) -> None:
    def rejected(**body: Any) -> dict[str, Any]:
        response = server.post("/v1/rewards", {**BODY, **body})
        assert response.status_code == 400
        error: dict[str, Any] = response.json()["error"]
        assert error["type"] == "bad_request"
        return error

    error = rejected(model="lora", outputs=True)
    assert error["param"] == "outputs"
    assert "this model has one output; train a model with loss.outputs" in error["message"]
    error = rejected(model="attributes", outputs=True, uncertainty=True)
    assert error["param"] == "uncertainty"
    assert "no ensemble of heads" in error["message"]


def test_metadata_list_the_outputs_and_their_weights(server: Running) -> None:
    def described(name: str) -> tuple[Any, ...]:
        found = server.get(f"/v1/models/{name}").json()
        return found["outputs"], found["reward"], found["lower_bound_k"]

    weights = dict(zip(THREE.names, THREE.weights, strict=True))
    assert described("attributes") == (weights, None, None)
    assert described("ensemble") == (dict.fromkeys(FIVE_HEADS.names, 0.2), "mean", 2.0)
    assert described("lora") == (None, None, None)


def test_other_protocols_answer_with_the_reward_alone(server: Running, attributes: Path) -> None:
    messages = [
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": RESPONSES[0]},
    ]
    body = {"model": "attributes", "messages": messages}
    (datum,) = server.post("/classify", body).json()["data"]
    (expected,) = load(attributes).score(PROMPT, RESPONSES[:1])
    assert datum["probs"] == [pytest.approx(expected, abs=1e-5)]


def test_clients_return_what_a_model_returns(
    server: Running, ensemble: Path, attributes: Path
) -> None:
    local = load(ensemble, lower_bound_k=2)
    expected = local.score(PROMPT, RESPONSES, outputs=True, uncertainty=True)
    rows = [(PROMPT, RESPONSES), ("x " * 400, ["too long"])]

    async def asked() -> list[RewardDetails]:
        async with AsyncRewardClient(server.url) as model:
            return await model.score(PROMPT, RESPONSES, outputs=True, uncertainty=True)

    with RewardClient(server.url) as model:
        first, too_long = model.score_many(rows, uncertainty=True)
        for found in (
            model.score(PROMPT, RESPONSES, outputs=True, uncertainty=True),
            asyncio.run(asked()),
        ):
            for one, other in zip(found, expected, strict=True):
                close(one, other)
    assert isinstance(too_long, RequestRejectedError)
    assert isinstance(first, list)
    assert [(one.spread is None, one.outputs) for one in first] == [(False, None)] * 3
    with RewardClient(server.url, model="attributes") as model:
        found = model.score(PROMPT, RESPONSES, outputs=True)
        for one, other in zip(
            found, load(attributes).score(PROMPT, RESPONSES, outputs=True), strict=True
        ):
            close(one, other)
        with pytest.raises(RequestRejectedError, match="The uncertainty was requested"):
            model.score(PROMPT, RESPONSES, uncertainty=True)


def test_a_cached_prefix_gives_the_outputs_of_the_whole(server: Running, ensemble: Path) -> None:
    prompt = "the quick brown fox jumps over the lazy dog " * 2
    details = load(ensemble, lower_bound_k=2).score(
        prompt, RESPONSES[:2], outputs=True, uncertainty=True
    )
    for response, one in zip(RESPONSES, details, strict=False):
        body = {"prompt": prompt, "responses": [response], "outputs": True, "uncertainty": True}
        answer = server.post("/v1/rewards", body).json()
        names = ("outputs", "mean", "spread", "lower_bound")
        fields = {name: answer[name][0] for name in names}
        close(RewardDetails(reward=answer["rewards"][0], **fields), one)
    # The second response found the prompt's keys and values.
    assert answer["usage"]["computed_tokens"] < answer["usage"]["total_tokens"] / 2


def test_a_padded_model_answers_with_its_outputs(tiny_base: Path, tmp_path: Path) -> None:
    folder = saved_with_outputs(tmp_path / "padded", tiny_base, lora=True)
    set_metadata(folder, attention="padded")
    model = load(folder)
    assert "layout='padded'" in repr(model)
    with running(folder) as server:
        answer = server.post("/v1/rewards", {**BODY, "outputs": True}).json()
    for k, one in enumerate(model.score(PROMPT, RESPONSES, outputs=True)):
        found = RewardDetails(reward=answer["rewards"][k], outputs=answer["outputs"][k])
        close(found, one)


@pytest.mark.parametrize("uncached", [{"cached_scores": 0}, {"prefix_cache_bytes": 0}])
def test_a_request_has_one_reward_per_conversation_in_every_batch(
    ensemble: Path, uncached: dict[str, Any]
) -> None:
    """Equal conversations of a long request are equal to the last bit, outputs included."""
    responses = [r for n in range(12) for r in (f"no, {'because ' * n}", RESPONSES[0])]
    with running(ensemble, max_batch_tokens=40, **uncached) as server:
        body = {"prompt": PROMPT, "responses": responses, "outputs": True}
        answer = server.post("/v1/rewards", body).json()
    again = answer["outputs"][1::2]
    assert again == again[:1] * 12
    assert len(set(answer["rewards"])) == 13
