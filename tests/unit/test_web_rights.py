"""Every route with every method and every role: who may do what, Faust's own routes included."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web as aiohttp_web

from streams.dev.ports import free_port
from streams.settings import Settings, load
from streams.web.messages import Request
from streams.web.rights import Right
from streams.web.site import Site
from streams.web.table import ROUTES
from streams.web.worker import add_pages
from streams.worker.app import App

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
ROLES: dict[str | None, set[str]] = {
    None: set(),
    "viewer": {"view"},
    "support": {"view", "text"},
    "operator": {"view", "operate"},
    "admin": {"view", "text", "operate", "discard", "admin"},
}
# Written down a second time: a route that is added, or changes its right, has to be changed here
# too.
NEEDED: dict[tuple[str, str], str | None] = {
    ("GET", "/login"): None,
    ("POST", "/login"): None,
    ("POST", "/logout"): None,
    ("GET", "/static/{file}"): None,
    ("GET", "/"): "view",
    ("GET", "/dead/"): "view",
    ("GET", "/dead/{fingerprint}"): "view",
    ("GET", "/conversations/"): "view",
    ("GET", "/conversation"): "view",
    ("GET", "/messages/"): "view",
    ("GET", "/messages/{message}"): "view",
    ("GET", "/workers/"): "view",
    ("GET", "/proof/"): "view",
    ("GET", "/acts/"): "view",
    ("GET", "/acts/export"): "view",
    ("GET", "/search"): "view",
    ("GET", "/api/overview"): "view",
    ("GET", "/api/dead"): "view",
    ("GET", "/metrics"): "view",
    ("GET", "/metrics/cluster"): "view",
    ("GET", "/api/dead/{fingerprint}"): "view",
    ("GET", "/api/conversations"): "view",
    ("GET", "/api/conversation"): "view",
    ("GET", "/api/messages"): "view",
    ("GET", "/api/messages/{message}"): "view",
    ("GET", "/api/workers"): "view",
    ("GET", "/api/proof"): "view",
    ("GET", "/api/acts"): "view",
    ("POST", "/operations/replay"): "operate",
    ("POST", "/api/operations/replay"): "operate",
    ("POST", "/operations/try"): "operate",
    ("POST", "/api/operations/try"): "operate",
    ("POST", "/operations/discard"): "discard",
    ("POST", "/api/operations/discard"): "discard",
    ("POST", "/operations/{operation}/submit"): "operate",
    ("POST", "/api/operations/{operation}/submit"): "operate",
    ("POST", "/operations/{operation}/stop"): "operate",
    ("POST", "/api/operations/{operation}/stop"): "operate",
    ("POST", "/operations/{operation}/resume"): "operate",
    ("POST", "/api/operations/{operation}/resume"): "operate",
    ("POST", "/proof/audit"): "operate",
    ("POST", "/api/proof/audit"): "operate",
    ("GET", "/operations/"): "view",
    ("GET", "/operations/{operation}"): "view",
    ("GET", "/api/operations"): "view",
    ("GET", "/api/operations/{operation}"): "view",
    ("POST", "/conversation/release"): "operate",
    ("POST", "/api/conversation/release"): "operate",
    ("POST", "/messages/{message}/replay"): "operate",
    ("POST", "/api/messages/{message}/replay"): "operate",
    ("POST", "/messages/{message}/discard"): "discard",
    ("POST", "/api/messages/{message}/discard"): "discard",
    ("POST", "/messages/{message}/edit"): "text",
    ("POST", "/api/messages/{message}/edit"): "text",
    ("POST", "/messages/{message}/text"): "text",
    ("POST", "/api/messages/{message}/text"): "text",
    ("GET", "/api/openapi.json"): "view",
}


@pytest.fixture(scope="module")
def settings() -> Settings:
    """Users' access with a token of each role.

    The database does not answer, which comes after every right.
    """
    tokens = {
        str(role): {"sha256": hashlib.sha256(str(role).encode()).hexdigest(), "role": role}
        for role in ROLES
        if role
    }
    environ = {
        "DATABASE_URL": f"postgresql://nobody@127.0.0.1:{free_port()}/none",
        "STREAMS_WEB__ACCESS": "users",
        "STREAMS_WEB__SECRET": "s" * 32,
        "STREAMS_WEB__USERS": (
            f"{{amy: {{password: 'scrypt:15:8:3:{'0' * 32}:{'0' * 64}', role: viewer}}}}"
        ),
        "STREAMS_WEB__TOKENS": str(tokens),
        "STREAMS_CONFIG": "",
    }
    return load(environ=environ)


def test_the_table_is_what_is_written_here() -> None:
    assert {
        (route.method, route.path): route.right and str(route.right) for route in ROUTES
    } == NEEDED
    assert {str(right) for right in Right} == ROLES["admin"]


def test_every_route_that_changes_anything_is_posted() -> None:
    assert {route.method for route in ROUTES} == {"GET", "POST"}
    # A role that may only look may change nothing but its own login.
    assert [
        route.path for route in ROUTES if route.method == "POST" and route.right in (None, "view")
    ] == [
        "/login",
        "/logout",
    ]


@pytest.mark.parametrize("role", ROLES, ids=str)
async def test_every_route_with_every_method(settings: Settings, role: str | None) -> None:
    site = Site(settings)
    headers = [("host", "127.0.0.1"), ("accept", "text/html" if role is None else "*/*")]
    headers += [("authorization", f"Bearer {role}")] if role else []
    paths = sorted({path for _, path in NEEDED} | {"/nothing/here"})
    for path in paths:
        for method in METHODS:
            real = (
                path.replace("{file}", "style.css")
                .replace("{message}", "7")
                .replace("{operation}", "7")
                .replace("{fingerprint}", "0" * 8)
            )
            answer = await site.answer(Request(method, real, headers=headers, peer="9.9.9.9"))
            status = answer.status
            if status == 405:
                served = {known for known, at in NEEDED if at == path}
                assert set(answer.headers["Allow"].split(", ")) - {"HEAD"} == served
            known = ("GET" if method == "HEAD" else method, path)
            if known not in NEEDED:
                expected = (
                    {401, 303} if role is None else {404} if path == "/nothing/here" else {405}
                )
            elif NEEDED[known] is None:
                # Without Sec-Fetch-Site and Origin even a login is refused.
                expected = {403} if method == "POST" else {200}
            elif role is None:
                expected = {401, 303}
            elif NEEDED[known] in ROLES[role]:
                expected = {200, 400, 404, 503}
            else:
                expected = {403}
            assert status in expected, (method, path, role, status)
    await site.close()


async def test_no_body_is_read_of_whoever_may_not_send_one(settings: Settings) -> None:
    site, read = Site(settings), 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield b"x" * 100_000

    async def ask(path: str, *headers: tuple[str, str]) -> int:
        request = Request("POST", path, headers=[("host", "127.0.0.1"), *headers], peer="9.9.9.9")
        return (await site.answer(request, chunks())).status

    token, ours = ("authorization", "Bearer viewer"), ("sec-fetch-site", "same-origin")
    assert await ask("/api/operations/replay") == 401
    assert await ask("/api/operations/replay", token) == 403
    assert await ask("/api/operations/replay", token, ("host", "evil.example")) == 400
    assert await ask("/api/dead", token) == 405
    assert await ask("/login") == 403
    assert read == 0
    assert await ask("/login", ours) == 413
    assert read == 1
    await site.close()


@pytest.fixture
async def worker(settings: Settings) -> AsyncIterator[str]:
    """The web server of a Faust app with our pages, and nothing else of it."""
    app: Any = App("rights", broker="kafka://127.0.0.1:1", web_stats_enabled=True)
    readiness = SimpleNamespace(partitions={}, reasons=[], heartbeat_age=0.0, positions={})
    add_pages(app, settings, SimpleNamespace(age=0.0, readiness=lambda: readiness))
    app.finalize()
    # At the start Faust does it twice.
    app.web.init_server()
    app.web.init_server()
    runner = app.web._runner
    await runner.setup()
    port = free_port()
    await aiohttp_web.TCPSite(runner, "127.0.0.1", port).start()
    yield f"http://127.0.0.1:{port}"
    await runner.cleanup()


FAUST = (
    "/",
    "/assignment/",
    "/table/",
    "/table/x/",
    "/table/x/y/",
    "/router/",
    "/router/topics",
    "/router/x/",
)


async def test_fausts_own_routes_follow_the_same_rules(worker: str) -> None:
    async with aiohttp.ClientSession() as client:
        for path in (*FAUST, "/nothing"):
            for method in METHODS:
                async with client.request(method, worker + path) as answer:
                    assert answer.status == 401, (method, path)
                    assert answer.headers["X-Content-Type-Options"] == "nosniff"
                    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
                token = {"Authorization": "Bearer viewer"}
                async with client.request(method, worker + path, headers=token) as answer:
                    allowed = {200, 404, 405, 500, 503} if method in ("GET", "HEAD") else {405}
                    assert answer.status in allowed, (method, path)
                    assert ("Allow" in answer.headers) == (answer.status == 405)
                    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            foreign = {"Authorization": "Bearer viewer", "Host": "evil.example"}
            async with client.get(worker + path, headers=foreign) as answer:
                assert answer.status == 421
        for path in ("/health/live", "/health/ready"):
            # Probes come by whatever name, and know no password.
            async with client.get(worker + path, headers={"Host": "anything.example"}) as answer:
                assert answer.status == 200


async def test_the_root_leads_a_browser_to_the_pages_and_tells_a_program_fausts_figures(
    worker: str,
) -> None:
    async with aiohttp.ClientSession() as client:
        html = {"Accept": "text/html,application/xhtml+xml"}
        async with client.get(f"{worker}/", headers=html, allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (302, "outbox/")
        async with client.get(f"{worker}/", headers={"Authorization": "Bearer viewer"}) as answer:
            # Faust's sensors, of which there are none before it is started.
            assert await answer.json() == {}
        async with client.get(f"{worker}/outbox", allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (308, "outbox/")
        async with client.get(f"{worker}/outbox/", headers=html, allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (303, "./login")
        async with client.get(
            f"{worker}/outbox/dead/?key=a", headers=html, allow_redirects=False
        ) as answer:
            assert answer.headers["Location"] == "../login?next=dead%2F%3Fkey%3Da"
        async with client.get(f"{worker}/outbox/login") as answer:
            assert answer.status == 200
