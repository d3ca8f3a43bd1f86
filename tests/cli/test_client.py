"""The client against a real server: what a model in this process gives, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from plaudit.client import AsyncRewardClient, RewardClient, Rewards
from plaudit.errors import DataError, RequestRejectedError, ServerError
from plaudit.reward_model import RewardModel
from tests.conftest import pair_rows
from tests.servers import Running, running

pytestmark = pytest.mark.heavy

PROMPT = [{"role": "user", "content": "what is the answer"}]
RESPONSES = ["because we counted twice right", "no that is not wrong", "forty two"]
TOO_LONG = "fox " * 2000


@pytest.fixture(scope="module")
def server(finished_run: Path) -> Iterator[Running]:
    with running(finished_run, token="open sesame") as server:
        yield server


@pytest.fixture
def model(server: Running) -> RewardModel:
    return server.model.model


@pytest.fixture
def client(server: Running) -> Iterator[RewardClient]:
    with RewardClient(server.url, token="open sesame", retries=0) as client:
        yield client


def test_it_answers_what_the_model_answers(client: RewardClient, model: RewardModel) -> None:
    assert client.score(PROMPT, RESPONSES) == pytest.approx(
        model.score(PROMPT, RESPONSES), abs=1e-5
    )
    assert client.score("a text", ["b"]) == pytest.approx(model.score("a text", ["b"]), abs=1e-5)
    a, b, _ = RESPONSES
    assert client.prefer(PROMPT, a, b) == pytest.approx(model.prefer(PROMPT, a, b), abs=1e-5)
    ours, theirs = client.best_of(PROMPT, RESPONSES), model.best_of(PROMPT, RESPONSES)
    assert (ours.index, ours.response) == (theirs.index, theirs.response)
    assert ours.rewards == pytest.approx(theirs.rewards, abs=1e-5)
    along, expected = client.token_rewards(PROMPT, a), model.token_rewards(PROMPT, a)
    assert [step.text for step in along] == [step.text for step in expected]
    assert [step.reward for step in along] == pytest.approx(
        [step.reward for step in expected], abs=1e-5
    )


def test_the_whole_record(client: RewardClient, model: RewardModel) -> None:
    found = client.rewards(PROMPT, RESPONSES, token_rewards=True)
    assert found.rewards == pytest.approx(model.score(PROMPT, RESPONSES), abs=1e-5)
    assert sum(found.win_probabilities) == pytest.approx(1)
    assert sorted(found.ranks) == [1, 2, 3]
    assert found.ranks[found.rewards.index(max(found.rewards))] == 1
    assert found.token_rewards is not None
    ends = [steps[-1].reward for steps in found.token_rewards]
    assert ends == pytest.approx(found.rewards, abs=1e-5)
    assert client.models() == [found.model]
    assert client.describe()["id"] == found.model


def test_many_rows_keep_their_order_and_their_rejections(
    client: RewardClient, model: RewardModel
) -> None:
    pairs = [(row["prompt"], [row["chosen"], row["rejected"]]) for row in pair_rows(20)]
    rows = [*pairs[:10], ("fox", [TOO_LONG]), *pairs[10:]]
    heard: list[tuple[int, int]] = []

    def listen(done: int, total: int) -> None:
        heard.append((done, total))

    found = client.rewards_of_many(rows, concurrency=4, on_progress=listen)
    assert heard == [(done, 21) for done in range(1, 22)]
    rejected = found.pop(10)
    assert isinstance(rejected, RequestRejectedError)
    assert "tokens" in str(rejected)
    for one, (prompt, responses) in zip(found, pairs, strict=True):
        assert isinstance(one, Rewards)
        assert one.rewards == pytest.approx(model.score(prompt, responses), abs=1e-5)
    for scores, same in zip(client.score_many(rows), model.score_many(rows), strict=True):
        if isinstance(scores, DataError):
            assert isinstance(same, DataError)
            assert "tokens" in str(same)
        else:
            assert scores == pytest.approx(same, abs=1e-5)


def test_the_asynchronous_client_answers_the_same(server: Running, client: RewardClient) -> None:
    rows = [(row["prompt"], [row["chosen"], row["rejected"]]) for row in pair_rows(6)]
    rows.insert(2, ("fox", [TOO_LONG]))
    a, b, _ = RESPONSES

    async def ask() -> None:
        async with AsyncRewardClient(server.url, token="open sesame", retries=0) as other:
            assert await other.score(PROMPT, RESPONSES) == client.score(PROMPT, RESPONSES)
            assert await other.prefer(PROMPT, a, b) == client.prefer(PROMPT, a, b)
            assert await other.best_of(PROMPT, RESPONSES) == client.best_of(PROMPT, RESPONSES)
            assert await other.token_rewards(PROMPT, a) == client.token_rewards(PROMPT, a)
            assert await other.models() == client.models()
            assert await other.describe() == client.describe()
            heard: list[int] = []
            many = await other.rewards_of_many(
                rows, concurrency=3, on_progress=lambda done, _: heard.append(done)
            )
            assert heard == list(range(1, 8))
            assert isinstance(many.pop(2), RequestRejectedError)
            scored = await other.score_many(rows)
            assert [type(row) for row in scored] == [type(row) for row in client.score_many(rows)]
            same = client.rewards_of_many(rows)
            same.pop(2)
            assert [one.rewards for one in many if isinstance(one, Rewards)] == [
                one.rewards for one in same if isinstance(one, Rewards)
            ]

    asyncio.run(ask())


def test_rejections_are_of_the_same_kind_as_in_this_process(
    client: RewardClient, model: RewardModel
) -> None:
    for scorer in (client, model):
        with pytest.raises(DataError, match="tokens"):
            scorer.score("fox", [TOO_LONG])
        with pytest.raises(DataError, match="responses is a single string"):
            scorer.score("fox", "a")
        for ask in (scorer.score, scorer.best_of):
            with pytest.raises(DataError, match=r"responses\[1\] is null; expected text"):
                ask("fox", ["a", None])
        with pytest.raises(DataError, match=r"rows\[1\] is None; expected a pair"):
            scorer.score_many([("fox", ["a"]), None])


def test_a_client_that_may_not(server: Running) -> None:
    with (
        RewardClient(server.url, token="wrong") as stranger,
        pytest.raises(ServerError, match=r"401.*token") as caught,
    ):
        stranger.score("a", ["b"])
    assert caught.value.status == 401
    with (
        RewardClient(server.url, token="open sesame", model="another") as lost,
        pytest.raises(ServerError, match=r"404.*see models"),
    ):
        lost.score("a", ["b"])
