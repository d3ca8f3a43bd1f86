"""Whatever JSON, or bytes that are nearly JSON, a client posts to any protocol: an answer in JSON
that is not a 5xx. A protocol in the table is covered without a line here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from plaudit.serving.errors import RejectionError
from plaudit.serving.protocols.records import Protocol, parse_body
from plaudit.serving.protocols.table import PROTOCOLS
from tests.servers import running

ROUTES = [
    (protocol, path, method)
    for protocol in PROTOCOLS.values()
    for path, method in product(protocol.paths, protocol.methods)
]
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be")
EXAMPLES = 80


def str_or_name(value: Any) -> str:
    return value.name if isinstance(value, Protocol) else str(value)


class Pairs(list[tuple[str, Any]]):
    """An object whose keys may occur more than once."""


def rendered(value: Any) -> str:
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{json.dumps(k)}:{rendered(v)}" for k, v in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(rendered, value)) + "]"
    if isinstance(value, dict):
        return rendered(Pairs(value.items()))
    return json.dumps(value)


def known_keys(protocol: Protocol) -> list[str]:
    """Every key that some shape of the request has."""
    schema = TypeAdapter(protocol.request).json_schema()
    shapes = [schema, *schema.get("$defs", {}).values()]
    return sorted({key for shape in shapes for key in shape.get("properties", {})})


TEXTS = st.text(st.characters(exclude_categories=()), max_size=6) | st.sampled_from(
    ["user", "assistant", "text", "a b", "\ud800", "a\udc00", "\ud83d\ude00", "\0", "<|im_end|>"]
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70_000) | st.sampled_from([2**31, 2**63, -(2**63) - 1, 10**400]),
    st.floats(),
    TEXTS,
)


def values(keys: list[str]) -> st.SearchStrategy[Any]:
    names = st.sampled_from([*keys, "role", "content", "type"]) | TEXTS
    return st.recursive(
        LEAVES,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.lists(st.tuples(names, inner), max_size=4).map(Pairs)
            | inner.map(lambda value: {"role": "user", "content": value})
        ),
        max_leaves=8,
    )


def bodies(protocol: Protocol) -> st.SearchStrategy[bytes]:
    """Any value, and the example with known keys set to one; in any encoding; spoilt bytes."""
    keys = known_keys(protocol)
    anything = values(keys)
    changes = st.lists(st.tuples(st.sampled_from(keys), anything), min_size=1, max_size=3)
    changed = changes.map(lambda more: Pairs([*protocol.example.items(), *more]))
    without = st.sampled_from(sorted(protocol.example)).map(
        lambda key: {name: value for name, value in protocol.example.items() if name != key}
    )
    deep = st.tuples(
        st.sampled_from(keys), st.sampled_from(["[", '{"a":']), st.integers(1, 300)
    ).map(lambda made: f'{{"{made[0]}":{made[1] * made[2]}')
    texts = st.one_of(changed, changed, anything, without).map(rendered) | deep
    encoded = st.tuples(texts, st.just("utf-8") | st.sampled_from(ENCODINGS)).map(
        lambda pair: pair[0].encode(pair[1])
    )
    spoilt = st.tuples(encoded, st.integers(0, 400), st.binary(max_size=3)).map(
        lambda made: made[0][: made[1]] + made[2]
    )
    return encoded | encoded | spoilt


def strictly(text: str) -> Any:
    def not_json(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=not_json)


@pytest.fixture(scope="module")
def client(finished_run: Path) -> Iterator[httpx.Client]:
    with running(finished_run) as server, httpx.Client(base_url=server.url, timeout=10) as made:
        yield made


@pytest.mark.heavy
@pytest.mark.parametrize(("protocol", "path", "method"), ROUTES, ids=str_or_name)
def test_every_body_is_answered_in_json(
    client: httpx.Client, protocol: Protocol, path: str, method: str
) -> None:
    half = dict.fromkeys(protocol.example, "\ud800")

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    @example(body=json.dumps({**protocol.example, **half}).encode("utf-16"))
    @example(body=json.dumps({**protocol.example, **half}).encode("utf-16-le"))
    @example(body=json.dumps(protocol.example).encode("utf-32"))
    @given(body=bodies(protocol))
    def answered(body: bytes) -> None:
        headers = {"content-type": "application/json"}
        response = client.request(method, path, content=body, headers=headers)
        assert response.status_code < 500, f"{body!r}: {response.text}"
        assert response.headers["content-type"] == "application/json"
        answer = strictly(response.text)
        if response.status_code >= 400:
            assert answer.keys() == {"error"}
            assert answer["error"].keys() == {"type", "message", "param", "request_id"}

    answered()


# ---- one parser for every route, without a server ------------------------------------------------


def parse(body: bytes, protocol: str = "rewards", content_type: str = "application/json") -> Any:
    return parse_body(TypeAdapter(PROTOCOLS[protocol].request), content_type, body)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"prompt":"\\ud800"}'.encode("utf-16"), "not valid UTF-8"),
        ('{"prompt":"\\ud800"}'.encode("utf-16-be"), "NUL bytes"),
        (b'{"prompt":"\xed\xa0\x80"}', "not valid UTF-8"),
        (b'{"prompt":"\\ud800"}', "surrogate"),
        (b'{"\\udc00\\ud83d":1}', "surrogate"),
        (b"[" * 100_000, "recursion limit"),
        (b"1" * 5000, "number out of range"),
        (b'{"a":1,}', "trailing comma at line 1 column 8"),
        (b"[1]", "not a JSON object"),
        (b"", "not a JSON object"),
    ],
)
def test_what_is_no_body_is_said(body: bytes, words: str) -> None:
    with pytest.raises(RejectionError, match=words):
        parse(body)


def test_json_is_read_from_utf8_alone_and_by_its_content_type() -> None:
    body = json.dumps(PROTOCOLS["rewards"].example).encode("utf-8-sig")
    assert parse(body).prompt == "Name a prime."
    assert parse(body, content_type="Application/vnd.api+JSON; charset=utf-8").responses
    for other in ("", "text/plain", "application/x-www-form-urlencoded", "json"):
        with pytest.raises(RejectionError, match="Content-Type"):
            parse(body, content_type=other)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=str_or_name)
@pytest.mark.parametrize("wrong", [{}, [], [{}], None, [None]], ids=str)
def test_a_list_of_wrong_elements_costs_one_report(protocol: Protocol, wrong: Any) -> None:
    """Reporting every element of a megabyte of them took seconds of the event loop."""
    parser = TypeAdapter(protocol.request)
    for key in known_keys(protocol):
        for many in ([wrong] * 5000, [[wrong] * 5000]):
            assert reports(parser, {**protocol.example, key: many}) < 20, key


def reports(parser: TypeAdapter[Any], body: dict[str, Any]) -> int:
    try:
        parser.validate_python(body)
    except ValidationError as error:
        return error.error_count()
    return 0
