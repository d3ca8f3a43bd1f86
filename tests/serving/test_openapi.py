"""The OpenAPI document: complete, and nothing that it allows or forbids makes the server fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.core.result import Err

from plaudit.serving.protocols.table import PROTOCOLS
from tests.servers import Running, running

pytestmark = pytest.mark.heavy
POSITIVE = schemathesis.GenerationMode.POSITIVE


@pytest.fixture(scope="module")
def server(finished_run: Path) -> Iterator[Running]:
    with running(finished_run) as found:
        yield found


@pytest.fixture(scope="module")
def document(server: Running) -> dict[str, Any]:
    found: dict[str, Any] = server.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for path in document["paths"].values() for one in path.values()]


def test_every_protocol_is_documented(document: dict[str, Any]) -> None:
    for protocol in PROTOCOLS.values():
        for path in protocol.paths:
            for method in protocol.methods:
                operation = document["paths"][path][method.lower()]
                assert operation["requestBody"]["required"]
                assert operation["summary"] == protocol.summary


def test_every_operation_has_its_own_id_and_says_how_it_fails(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for operation in operations(document)]
    assert len(ids) == len(set(ids))
    for operation in operations(document):
        for status in ("400", "401", "413", "422", "500", "503", "504"):
            schema = operation["responses"][status]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/ErrorBody"}


def test_no_request_makes_the_server_fail(document: dict[str, Any], server: Running) -> None:
    """Bodies that the document allows and bodies that it forbids, for every operation."""
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=server.url)
    asked = 0
    for found in schema.get_all_operations():
        assert not isinstance(found, Err)
        operation = found.ok()
        if operation.path.endswith("/reload"):
            continue
        # What takes nothing cannot be sent anything that is forbidden.
        for mode in schemathesis.GenerationMode if operation.body else [POSITIVE]:

            @settings(
                max_examples=5,
                deadline=None,
                derandomize=True,
                database=None,
                phases=(Phase.generate,),
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                nonlocal asked
                asked += 1
                response = case.call()
                assert response.status_code < 500, f"{case.as_curl_command()}: {response.text}"
                if response.status_code >= 400:
                    assert response.json().keys() == {"error"}

            ask()
    assert asked > 50
