"""The table of protocols, and what each answers from given rewards."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from plaudit.serving.errors import RejectionError
from plaudit.serving.protocols.records import (
    Dialogue,
    Protocol,
    ScoreResult,
    activated,
)
from plaudit.serving.protocols.rewards import ranks, win_probabilities
from plaudit.serving.protocols.table import PROTOCOLS

EVERY = [pytest.param(protocol, id=name) for name, protocol in PROTOCOLS.items()]


def scored(*rewards: float, temperature: float = 1.0) -> ScoreResult:
    return ScoreResult(
        id="x",
        model="rm",
        created=0,
        temperature=temperature,
        rewards=list(rewards),
        tokens=list(range(3, 3 + len(rewards))),
        computed=7,
        seconds=0.1,
    )


def exchange(name: str, body: Any, *rewards: float) -> Any:
    """The answer to a request as JSON."""
    protocol = PROTOCOLS[name]
    request = TypeAdapter(protocol.request).validate_python(body)
    answer = protocol.answer(request, scored(*rewards))
    return TypeAdapter(protocol.response).dump_python(answer, mode="json")


def parts(name: str, body: Any) -> Any:
    protocol = PROTOCOLS[name]
    return tuple(TypeAdapter(protocol.request).validate_python(body).read().parts)


@pytest.mark.parametrize("protocol", EVERY)
def test_the_example_is_read_and_answered(protocol: Protocol) -> None:
    request = TypeAdapter(protocol.request).validate_python(protocol.example)
    ask = request.read()
    count = sum(len(p.responses) if isinstance(p, Dialogue) else 1 for p in ask.parts)
    answer = protocol.answer(request, scored(*(0.5 * i for i in range(count))))
    TypeAdapter(protocol.response).dump_json(answer)


def test_no_two_protocols_listen_in_one_place() -> None:
    places = Counter(path for protocol in PROTOCOLS.values() for path in protocol.paths)
    assert set(places.values()) == {1}


@pytest.mark.parametrize("protocol", EVERY)
def test_an_empty_object_is_rejected(protocol: Protocol) -> None:
    with pytest.raises((ValidationError, RejectionError)):
        TypeAdapter(protocol.request).validate_python({}).read()


def test_openrlhf_clients_of_every_release_are_answered() -> None:
    """One text or a list, with and without prompts and labels; parts of a batch may be empty."""
    assert exchange("openrlhf", {"query": ["a"]}, 0.7)["rewards"] == [0.7]
    head = {"query": ["a"], "prompts": ["a"], "labels": [None]}
    assert exchange("openrlhf", head, 0.7) == {
        "rewards": [0.7],
        "scores": [0.7],
        "extra_logs": {"len": [3]},
    }
    assert exchange("openrlhf", {"query": "a"}, 0.7)["rewards"] == [0.7]
    assert exchange("openrlhf", {"query": [], "prompts": []}) == {
        "rewards": [],
        "scores": [],
        "extra_logs": {"len": []},
    }


def test_llama_factory_reads_scores() -> None:
    body = {"model": "rm", "messages": ["text 1", "text 2"], "max_length": 2048}
    answer = exchange("llama_factory", body, 1.2, -0.4)
    assert answer == {
        "id": "scoreval-x",
        "object": "score.evaluation",
        "model": "rm",
        "scores": [1.2, -0.4],
    }
    with pytest.raises(RejectionError, match="messages is empty"):
        parts("llama_factory", {"messages": []})


def test_vllm_classify() -> None:
    answer = exchange("classify", {"model": "m", "input": "t", "activation": False}, 1.3)
    assert answer["data"] == [{"index": 0, "label": "LABEL_0", "probs": [1.3], "num_classes": 1}]
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3, "completion_tokens": 0}


@pytest.mark.parametrize("key", ["activation", "use_activation"])
def test_an_activation_is_a_sigmoid_and_only_where_asked(key: str) -> None:
    for value, expected in ((True, 1 / (1 + math.exp(-1.3))), (False, 1.3), (None, 1.3)):
        body = {"input": ["t"], key: value}
        assert exchange("classify", body, 1.3)["data"][0]["probs"] == [pytest.approx(expected)]
        assert exchange("pooling", body, 1.3)["data"][0]["data"] == [pytest.approx(expected)]
        pair = {"queries": "q", "documents": "d", key: value}
        assert exchange("score", pair, 1.3)["data"][0]["score"] == pytest.approx(expected)
        documents = {"query": "q", "documents": ["d"], key: value}
        (result,) = exchange("rerank", documents, 1.3)["results"]
        assert result["relevance_score"] == pytest.approx(expected)


def test_sglang_classify_gives_one_object_or_a_list() -> None:
    single = exchange("classify", {"text": "t", "rid": "mine"}, 1.3)
    assert single["embedding"] == [1.3]
    assert single["meta_info"] == {"id": "mine", "prompt_tokens": 3, "e2e_latency": 0.1}
    assert [e["embedding"] for e in exchange("classify", {"text": ["t"]}, 1.3)] == [[1.3]]
    assert exchange("classify", {"input_ids": [1, 2]}, 1.3)["embedding"] == [1.3]
    assert len(exchange("encode", {"input_ids": [[1, 2], [3]]}, 1.3, 1.4)) == 2
    assert exchange("encode", {"input_ids": []}) == []


def test_inputs_are_texts_or_ids() -> None:
    assert parts("classify", {"input": "t"}) == ("t",)
    assert parts("classify", {"input": ["t", "u"]}) == ("t", "u")
    assert parts("classify", {"input": [5, 6]}) == ([5, 6],)
    assert parts("pooling", {"input": [[5], [6, 7]]}) == ([5], [6, 7])


def test_a_chat_is_its_last_message_behind_the_others() -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "name": "x"}]
    (dialogue,) = parts("classify", {"messages": turns, "chat_template_kwargs": {"k": 1}})
    assert dialogue == Dialogue(
        prompt=[turns[0]], responses=([turns[1]],), template_kwargs={"k": 1}
    )


@pytest.mark.parametrize(
    "more", [{"chat_template": "{{ 1 }}"}, {"add_generation_prompt": True}, {"messages": []}]
)
def test_a_chat_request_cannot_bring_its_own_template(more: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": "q"}], **more}
    with pytest.raises(ValidationError):
        parts("classify", body)


def test_the_last_tokens_are_kept_where_asked() -> None:
    protocol = PROTOCOLS["classify"]

    def keep(value: int) -> int | None:
        body = {"input": "t", "truncate_prompt_tokens": value}
        return TypeAdapter(protocol.request).validate_python(body).read().keep_last

    assert (keep(16), keep(-1)) == (16, -1)
    with pytest.raises(RejectionError):
        keep(0)


def test_pairs_of_score_have_every_name() -> None:
    expected = (Dialogue(prompt="q", responses=("a", "b")),)
    for queries, documents in (
        ("queries", "documents"),
        ("text_1", "text_2"),
        ("data_1", "data_2"),
        ("queries", "items"),
    ):
        assert parts("score", {queries: "q", documents: ["a", "b"]}) == expected
    assert parts("score", {"text_1": ["q", "r"], "text_2": ["a", "b"]}) == (
        Dialogue(prompt="q", responses=("a",)),
        Dialogue(prompt="r", responses=("b",)),
    )
    with pytest.raises(RejectionError, match="do not match"):
        parts("score", {"text_1": ["q", "r"], "text_2": ["a"]})
    assert parts("score", {"query": "q ", "items": ["a"]}) == ("q a",)


def test_rerank_is_sorted_and_cut() -> None:
    body = {"query": "q", "documents": ["a", {"text": "b"}, "c"], "top_n": 2}
    answer = exchange("rerank", body, 0.1, 0.9, 0.5)
    assert answer["results"] == [
        {"index": 1, "relevance_score": 0.9, "document": {"text": "b", "multi_modal": None}},
        {"index": 2, "relevance_score": 0.5, "document": {"text": "c", "multi_modal": None}},
    ]
    assert answer["usage"]["total_tokens"] == 12
    assert len(exchange("rerank", {**body, "top_n": 0}, 0.1, 0.9, 0.5)["results"]) == 3
    bare = exchange("rerank", {**body, "return_documents": False}, 0.1, 0.9, 0.5)
    assert bare["results"][0]["document"] is None


def test_rank_fields_name_what_of_a_document_is_read() -> None:
    body = {"query": "q", "documents": [{"title": "t", "body": "b"}]}
    (dialogue,) = parts("rerank", {**body, "rank_fields": ["title", "body"]})
    assert dialogue.responses == ("t\nb",)
    with pytest.raises(RejectionError, match="no text"):
        parts("rerank", body)


def test_compare_names_the_preferred_one() -> None:
    body = {"prompt": "q", "a": "x", "b": "y"}
    assert exchange("compare", body, 1.0, 2.0)["preferred"] == "b"
    tie = exchange("compare", body, 1.0, 1.0)
    assert (tie["preferred"], tie["probability"]) == ("tie", 0.5)


rewards = st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=20)


@given(given_rewards=rewards, temperature=st.floats(1e-3, 1e3))
def test_win_probabilities_are_probabilities_in_the_order_of_rewards(
    given_rewards: list[float], temperature: float
) -> None:
    found = win_probabilities(given_rewards, temperature)
    assert sum(found) == pytest.approx(1)
    assert found[given_rewards.index(max(given_rewards))] == max(found)
    places = ranks(given_rewards)
    assert places == [1 + sum(other > one for other in given_rewards) for one in given_rewards]


def test_of_two_it_is_bradley_terry() -> None:
    a, _ = win_probabilities([1.5, 0.5], 2.0)
    assert a == pytest.approx(1 / (1 + math.exp(-0.5)))


@given(reward=st.floats(-1e300, 1e300))
def test_the_sigmoid_never_overflows(reward: float) -> None:
    assert 0 <= activated(reward, True) <= 1


def test_rewards_carry_what_was_computed() -> None:
    protocol = PROTOCOLS["rewards"]
    request = TypeAdapter(protocol.request).validate_python(protocol.example)
    answer = protocol.answer(request, replace(scored(0.1, 0.3, 0.2), computed=5))
    assert answer.usage.model_dump() == {
        "prompt_tokens": 12,
        "computed_tokens": 5,
        "total_tokens": 12,
    }
    assert answer.ranks == [3, 1, 2]
