"""One real deployment and one real browser for all tests in this folder."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
from aiohttp import web
from fastapi import FastAPI
from playwright.sync_api import Browser, Page, sync_playwright

from streams.database import connect_sync
from streams.dev.kafka import KafkaBroker
from streams.dev.ports import free_port
from streams.dev.postgres import PostgresServer
from streams.testing.deployment import Deployment
from streams.testing.services import copied
from streams.web import aiohttp as aiohttp_pages
from streams.web import asgi, passwords
from tests.fixtures.programs import program
from tests.fixtures.scene import BIDI, CANARY

PASSWORD = "correct horse battery staple"
# Names that must run nowhere; plain ones for the pictures of the README.
PICTURED = bool(os.environ.get("WRITE_PICTURES"))
BIZ_TYPE = "likes" if PICTURED else "<img src=x onerror=document.title='canary'>"
KEY, TURNED = ("chat-311", "chat-204") if PICTURED else (CANARY, BIDI)

# Chats that are persisted, one whose message cannot be read, and a biz_type that nobody knows, in
# conversations of odd names.
FILL = """
INSERT INTO outbox_biz_types (biz_type, topic, max_bytes) VALUES (%(biz_type)s, %(topic)s, 900000);
SELECT outbox_enqueue('chat_history_persist', key, json_build_object(
    'user_id', 7, 'conversation_id', key, 'role', 'user', 'message', 'canary-text ' || n))
FROM generate_series(1, 400) AS n, LATERAL (SELECT 'chat-' || n % 20 AS key) AS k;
INSERT INTO outbox (biz_type, topic, key, payload)
SELECT 'chat_history_persist', %(topic)s, key,
       '{"user_id": "canary-text", "conversation_id": "c", "role": "user", "message": "m"}'
FROM unnest(ARRAY[%(canary)s, %(bidi)s, 'chat-3']) AS key, generate_series(1, 4);
INSERT INTO outbox (biz_type, topic, key, payload)
VALUES (%(biz_type)s, %(topic)s, %(canary)s, '{}');
INSERT INTO outbox_actions (who, act, what, why)
VALUES (%(canary)s, 'replay', '{"count": 1}', %(canary)s);
"""


@dataclass(frozen=True)
class Stack:
    """A deployment at work: `pages` are a worker's, `login` those of `streams web` with users."""

    deployment: Deployment
    pages: str
    login: str

    def query(self, statement: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """Run one statement."""
        with connect_sync(self.deployment.url) as connection:
            cursor = connection.execute(statement.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []


@pytest.fixture(scope="session")
def stack(
    postgres: PostgresServer,
    kafka: KafkaBroker,
    template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    """A relay, a worker and `streams web`, with some messages dead and one conversation waiting."""
    with ExitStack() as opened:
        url = opened.enter_context(copied(postgres, postgres.url_of(template)))
        deployment = opened.enter_context(
            Deployment.on(url, kafka.url, tmp_path_factory.mktemp("stack"))
        )
        deployment.up()
        stack = Stack(
            deployment, f"http://127.0.0.1:{deployment.ports[0]}/outbox/", _login(deployment)
        )
        [(topic,)] = stack.query(
            "SELECT topic FROM outbox_biz_types WHERE biz_type = 'chat_history_persist'"
        )
        values = {"biz_type": BIZ_TYPE, "topic": topic, "canary": KEY, "bidi": TURNED}
        for statement in FILL.split(";\n"):
            if statement.strip():
                stack.query(statement.replace("n % 20", "n %% 20"), **values)
        # All but what nobody knows, which waits: what a page shows changes no more by itself.
        ended = "SELECT status, count(*) FROM outbox_state WHERE status <> 'retrying' GROUP BY 1"
        until(lambda: dict(stack.query(ended)) == {"dead": 12, "consumed": 400})
        yield stack


def _login(deployment: Deployment) -> str:
    port = free_port()
    users = f'{{amy: {{password: "{passwords.line(PASSWORD)}", role: operator}}}}'
    deployment.start(
        "streams",
        "web",
        "--port",
        str(port),
        STREAMS_WEB__ACCESS="users",
        STREAMS_WEB__USERS=users,
        STREAMS_WEB__SECRET="s" * 40,
        STREAMS_WEB__ENVIRONMENT="staging",
        STREAMS_WEB__COLOUR="violet",
    )
    return f"http://127.0.0.1:{port}/outbox/"


@pytest.fixture
def mounted(stack: Stack) -> Iterator[dict[str, str]]:
    """The pages in an aiohttp and in a FastAPI application, each below a prefix, in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    settings, ports = stack.deployment.settings, (free_port(), free_port())
    on_aiohttp, on_fastapi = web.Application(), FastAPI()
    on_aiohttp.add_subapp("/team/outbox/", aiohttp_pages.pages(settings))
    runner = web.AppRunner(on_aiohttp, shutdown_timeout=1)
    inside = asgi.pages(settings)
    on_fastapi.mount("/ops", inside)
    server = uvicorn.Server(uvicorn.Config(on_fastapi, port=ports[1], log_level="warning"))

    async def serve() -> asyncio.Task[None]:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", ports[0]).start()
        serving = asyncio.ensure_future(server.serve())
        while not server.started:
            await asyncio.sleep(0.02)
        return serving

    async def stop(serving: asyncio.Task[None]) -> None:
        server.should_exit = True
        await serving
        await inside.aclose()
        await runner.cleanup()

    serving = asyncio.run_coroutine_threadsafe(serve(), loop).result(20)
    yield {
        "aiohttp": f"http://127.0.0.1:{ports[0]}/team/outbox/",
        "fastapi": f"http://127.0.0.1:{ports[1]}/ops/",
    }
    asyncio.run_coroutine_threadsafe(stop(serving), loop).result(20)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture(scope="module")
def browser(stack: Stack) -> Iterator[Browser]:
    """Debian's Chromium, after the servers.

    Playwright keeps an event loop in this thread until it is closed.
    """
    path = program("chromium", "chromium", "chromium-browser", "google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page whose errors fail the test that uses it."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "console", lambda message: wrong.append(message.text) if message.type == "error" else None
    )
    yield page
    context.close()
    assert wrong == []


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """The condition's first true value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {value!r}"
        time.sleep(0.1)
    return value
