"""`streams web`: the pages in a process of their own."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any, NamedTuple

from aiohttp import web

from streams.settings import Settings
from streams.web.front import MOUNT, SHUTDOWN_SECONDS, set_up
from streams.web.health import add_health
from streams.web.probe import add_probe, check_free
from streams.web.site import Site

PORT = 6065


class _Readiness(NamedTuple):
    partitions: dict[str, list[int]]
    reasons: list[str]
    heartbeat_age: float
    positions: dict[str, Any]


class _Health:
    """Ready while it answers: that the database is away is what its pages are there to say."""

    age = 0.0

    def readiness(self) -> _Readiness:
        return _Readiness({}, [], 0.0, {})


async def serve(settings: Settings, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve the pages until SIGINT or SIGTERM; UsageError when somebody else listens there."""
    check_free("--port", host, port)
    site = Site(settings)
    health = _Health()
    app = web.Application()
    app.router.add_get("/", _what_is_here)
    set_up(app, site)
    add_health(app, health)
    add_probe(app, settings.web.probe, health)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        shown = f"[{host}]" if ":" in host else host
        say(f"pages at http://{shown}:{port}{MOUNT}/")
        await _until_told()
    finally:
        await runner.cleanup()


async def _until_told() -> None:
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    for stop in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(stop, told.set)
    await told.wait()


async def _what_is_here(_: web.Request) -> web.Response:
    return web.json_response(
        {"pages": f"{MOUNT}/", "api": f"{MOUNT}/api/openapi.json", "health": "/health/ready"}
    )
