"""One conformance suite over HTTP, for all that serves the pages.

A worker's server, `streams web`, an aiohttp and a FastAPI host, with prefixes.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
import uvicorn
from aiohttp import web
from fastapi import FastAPI

from streams.dev.ports import free_port
from streams.settings import Settings, load
from streams.testing.deployment import Deployment
from streams.web import aiohttp as on_aiohttp
from streams.web import asgi
from streams.web.guard import HEADERS
from streams.web.render import FOLDER
from streams.web.worker import add_pages
from streams.worker.app import App

HTML = {"Accept": "text/html"}


@asynccontextmanager
async def _worker(settings: Settings, world: Deployment) -> AsyncIterator[str]:
    port = free_port()
    app: Any = App(
        "mount",
        broker="kafka://127.0.0.1:1",
        web_stats_enabled=True,
        web_bind="127.0.0.1",
        web_port=port,
    )
    readiness = SimpleNamespace(partitions={}, reasons=[], heartbeat_age=0.0, positions={})
    add_pages(app, settings, SimpleNamespace(age=0.0, readiness=lambda: readiness))
    app.finalize()
    # As Faust starts it, on the runner that we gave it; and as it stops it: it cleans up twice.
    app.web.init_server()
    await app.web.start_server()
    yield f"http://127.0.0.1:{port}/outbox"
    await app.web.stop_server()


@asynccontextmanager
async def _alone(settings: Settings, world: Deployment) -> AsyncIterator[str]:
    port, probe = free_port(), f"127.0.0.1:{free_port()}"
    process = world.start("streams", "web", "--port", str(port), STREAMS_WEB__PROBE=probe)
    address = f"http://127.0.0.1:{port}/outbox"
    async with asyncio.timeout(30), aiohttp.ClientSession() as client:
        while True:
            try:
                async with client.get(f"http://127.0.0.1:{port}/health/ready"):
                    break
            except aiohttp.ClientConnectionError:
                assert process.running, process.last_words(5)
                await asyncio.sleep(0.05)
    async with aiohttp.ClientSession() as client:
        # Probes come from elsewhere, by whatever name, and find nothing but health.
        for path, status in (
            ("/health/live", 200),
            ("/health/ready", 200),
            ("/", 404),
            ("/outbox/", 404),
        ):
            async with client.get(
                f"http://{probe}{path}", headers={"Host": "pod.example"}
            ) as answer:
                assert answer.status == status, path
    yield address
    # Ten open pages keep nobody from ending.
    pages = [await asyncio.open_connection("127.0.0.1", port) for _ in range(10)]
    for number, (reader, writer) in enumerate(pages):
        writer.write(f"GET /outbox/?part={number} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        if number % 2:  # of half of them somebody still waits for the answer
            await reader.readline()
    # By itself: aiohttp alone would wait for them for a minute.
    await process.stop(grace=20)
    assert process.returncode == 0
    for _, writer in pages:
        writer.close()


@asynccontextmanager
async def _in_aiohttp(
    settings: Settings, world: Deployment, prefix: str = "/team/outbox"
) -> AsyncIterator[str]:
    host = web.Application()
    host.add_subapp(f"{prefix}/", on_aiohttp.pages(settings))
    runner = web.AppRunner(host, shutdown_timeout=1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield f"http://127.0.0.1:{port}{prefix}"
    await runner.cleanup()


@asynccontextmanager
async def _in_fastapi(
    settings: Settings, world: Deployment, prefix: str = "/ops"
) -> AsyncIterator[str]:
    host = FastAPI()
    pages = asgi.pages(settings)
    host.mount(prefix, pages)
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(host, port=port, log_level="warning", proxy_headers=False)
    )
    serving = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.02)
    yield f"http://127.0.0.1:{port}{prefix}"
    server.should_exit = True
    await serving
    await pages.aclose()


MOUNTS: dict[str, Callable[[Settings, Deployment], Any]] = {
    "worker": _worker,
    "streams web": _alone,
    "aiohttp": _in_aiohttp,
    "fastapi": _in_fastapi,
}


@pytest.fixture
def world(database: str, tmp_path: Path) -> Iterator[Deployment]:
    """A database; pages need no Kafka."""
    with Deployment(
        {"DATABASE_URL": database, "BROKER_URL": "127.0.0.1:1"}, tmp_path
    ) as deployment:
        yield deployment


@pytest.mark.parametrize("mount", MOUNTS)
async def test_a_mount_serves_all_that_every_mount_serves(mount: str, world: Deployment) -> None:
    settings = load(environ=world.environ)
    async with MOUNTS[mount](settings, world) as at, aiohttp.ClientSession() as client:

        async def ask(path: str, method: str = "GET", **options: Any) -> tuple[int, Any, str]:
            async with client.request(
                method, at + path, allow_redirects=False, **options
            ) as answer:
                return answer.status, answer.headers, await answer.text()

        # Pages, whose addresses are all relative.
        status, headers, page = await ask("/", headers=HTML)
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        for address in re.findall(r'(?:href|src|action)="([^"]*)"', page):
            assert not address.startswith("/") and "://" not in address, address
        deep = (await ask("/dead/", headers=HTML))[2]
        assert 'href="../static/style.css' in deep

        # Files, which are kept where their version is named.
        style = re.search(r'"\./(static/style\.css\?v=\w+)"', page)
        assert style
        status, headers, text = await ask(f"/{style[1]}")
        assert (status, text) == (200, (FOLDER / "static/style.css").read_text())
        assert "immutable" in headers["Cache-Control"]

        # Fragments, which cost nothing while nothing changes.
        status, headers, _ = await ask("/dead/?part=live")
        tag = {"If-None-Match": headers["ETag"]}
        status, headers, text = await ask("/dead/?part=live", headers=tag)
        assert (status, text) == (304, "")
        assert headers["X-Figures-At"]

        # The same as JSON, and its description.
        status, headers, text = await ask("/api/dead")
        assert (status, text) == (200, '{"causes":[],"page":{"rows":[],"before":null}}')
        assert '"openapi":"3.1.0"' in (await ask("/api/openapi.json"))[2]
        status, headers, text = await ask("/", "HEAD")
        assert (status, text) == (200, "")

        # Whatever is wrong is one line, as a page for a person and as JSON for a program.
        for path, expected, line in (
            ("/nowhere", 404, "there is no such page"),
            ("/dead/?key=%00", 400, "'key' holds a NUL character"),
            ("/dead/?key=" + "x" * 1025, 400, "'key' has 1,025 bytes"),
            ("/dead/?kex=1", 400, "unknown parameter 'kex': expected one of"),
            ("/dead/?held=maybe", 400, "'held' is 'maybe': expected"),
        ):
            status, headers, text = await ask(path, headers=HTML)
            assert status == expected and "<h1>" in text, path
            status, headers, text = await ask(path)
            assert status == expected and line in text and text.startswith('{"error":'), path
        assert (await ask("/static/..%2f..%2fpool.py"))[0] == 404

        # What nobody else may do.
        assert (await ask("/", headers={"Host": "evil.example"}))[0] == 421
        assert (await ask("/", headers={"X-Forwarded-For": "1.2.3.4"}))[0] == 403
        assert (await ask("/logout", "POST"))[0] == 403
        assert (await ask("/logout", "POST", headers={"Origin": "http://evil.example"}))[0] == 403
        assert (await ask("/logout", "POST", headers={"Sec-Fetch-Site": "same-origin"}))[0] == 404
        assert (await ask("/", "DELETE"))[0] == 405
        own = {"Sec-Fetch-Site": "same-origin"}
        assert (await ask("/logout", "POST", headers=own, data=b"x" * 70_000))[0] == 413

        # Every response has its headers, whatever it is.
        for path in ("/", "/nowhere", "/api/dead", "/static/icon.svg", "/dead/?part=live"):
            headers = (await ask(path))[1]
            assert {name for name in HEADERS if name not in headers} == set(), path

        # Without the last slash.
        status, headers, _ = await ask("")
        if mount != "aiohttp":  # there the host's router knows no such address
            assert status in (307, 308)
            assert headers["Location"].endswith("/")
