"""The API keeps to its own description, whatever is sent: by Schemathesis, over HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from aiohttp import web
from hypothesis import HealthCheck
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from streams.database import connect_sync
from streams.dev.postgres import PostgresServer
from streams.settings import load
from streams.testing.services import copied
from streams.web import aiohttp as aiohttp_pages
from streams.web.openapi import description
from streams.web.table import ROUTES
from tests.fixtures.scene import HELD, fill

Case = schemathesis.Case[Any]
SCHEMA = schemathesis.openapi.from_dict(json.loads(json.dumps(description())))
OPERATIONS = [each.ok() for each in SCHEMA.get_all_operations() if isinstance(each, Ok)]
SECONDS = 60.0  # in which anything answers on a busy machine
# Not that all is refused that no schema allows: what is empty, or `null`, counts as not given.
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def api(postgres: PostgresServer, streams_template: str) -> Iterator[tuple[str, str]]:
    """The address of the API, with whatever the scene holds; and the database's."""
    with copied(postgres, streams_template) as url:
        fill(url)
        token = {"admin": {"sha256": hashlib.sha256(b"admin").hexdigest(), "role": "admin"}}
        environ = {"DATABASE_URL": url, "STREAMS_WEB__TOKENS": json.dumps(token)}
        app, loop = web.Application(), asyncio.new_event_loop()
        app.add_subapp("/outbox/", aiohttp_pages.pages(load(environ=environ)))
        runner = web.AppRunner(app, shutdown_timeout=1)
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()

        async def serve() -> int:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            return int(runner.addresses[0][1])

        port = asyncio.run_coroutine_threadsafe(serve(), loop).result(SECONDS)
        yield f"http://127.0.0.1:{port}/outbox/api", url
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def ask(case: Case, address: str, session: requests.Session) -> schemathesis.Response:
    """One call, which keeps to the description; what is wrong is said in one line."""
    response = case.call(
        base_url=address,
        session=session,
        headers={"Authorization": "Bearer admin"},
        timeout=SECONDS,
    )
    case.validate_response(response, checks=CHECKS)
    if response.status_code >= 400:
        line = response.json()["error"]
        assert line and "\n" not in line and len(line) < 400, line
    return response


def proved(address: str, examples: int, mode: GenerationMode) -> None:
    """So many cases of every call keep to the description."""
    with requests.Session() as session:
        for operation in OPERATIONS:
            if mode is GenerationMode.NEGATIVE and not operation_takes(operation):
                continue

            @hypothesis.settings(
                max_examples=examples,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[hypothesis.Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @hypothesis.given(operation.as_strategy(generation_mode=mode))
            def test(case: Case) -> None:
                ask(case, address, session)

            test()


def operation_takes(operation: Any) -> bool:
    """Whether there is anything to be wrong in a call."""
    raw = operation.definition.raw
    return bool(raw.get("parameters") or raw.get("requestBody"))


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_every_call_keeps_to_its_description(api: tuple[str, str], mode: GenerationMode) -> None:
    proved(api[0], 3, mode)


@pytest.mark.long
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_every_call_keeps_to_its_description_in_full(
    api: tuple[str, str], mode: GenerationMode
) -> None:
    proved(api[0], 100, mode)


def test_what_is_found_keeps_to_its_description(api: tuple[str, str]) -> None:
    address, url = api
    with connect_sync(url) as connection:
        [(cause,)] = connection.execute(
            "SELECT fingerprint FROM outbox_dead_letters WHERE outbox_id = 2012"
        ).fetchall()
    known: dict[str, dict[str, Any]] = {
        "/dead/{fingerprint}": {"path_parameters": {"fingerprint": cause}},
        "/conversation": {"query": {"topic": "chat-history", "key": HELD}},
        "/messages/{message}": {"path_parameters": {"message": "2012"}},
        "/operations/{operation}": {"path_parameters": {"operation": 1}},
    }
    with requests.Session() as session:
        preview = SCHEMA["/operations/replay"]["POST"].Case(
            body={"error": cause, "why": "mended"}, media_type="application/x-www-form-urlencoded"
        )
        assert ask(preview, address, session).status_code == 200
        for operation in OPERATIONS:
            if operation.method == "get":
                response = ask(operation.Case(**known.get(operation.path, {})), address, session)
                assert response.status_code == 200, (operation.path, response.text)
        # No path is answered by whatever stands before the pages.
        odd = SCHEMA["/messages/{message}"]["GET"].Case(path_parameters={"message": "a\nb"})
        assert ask(odd, address, session).status_code == 400


def test_every_call_of_the_api_is_described() -> None:
    described = {(each.method.upper(), f"/api{each.path}") for each in OPERATIONS}
    served = {(route.method, route.path) for route in ROUTES if route.path.startswith("/api/")}
    assert served - described == {("GET", "/api/openapi.json")}
