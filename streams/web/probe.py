"""A server for `/health/live` and `/health/ready` alone.

It is for probes from elsewhere (`web.probe`).
"""

from __future__ import annotations

import os
import socket

from aiohttp import web

from streams.errors import UsageError
from streams.web.health import WorkerHealth, add_health


def add_probe(app: web.Application, address: str | None, health: WorkerHealth) -> None:
    """Serve health at `address` (host:port) from the start of this application to its end.

    Nothing is served when it is None.
    """
    if address is None:
        return
    host, port = host_and_port(address)
    runners: list[web.AppRunner] = []

    async def begin(_: web.Application) -> None:
        alone = web.Application()
        add_health(alone, health)
        runner = web.AppRunner(alone, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        runners.append(runner)
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            advice = ": set STREAMS_WEB__PROBE, workers on one machine need different ones"
            raise refused("web.probe", address, error, advice=advice) from None

    async def end(_: web.Application) -> None:
        while runners:
            await runners.pop().cleanup()

    app.on_startup.append(begin)
    app.on_cleanup.append(end)


def host_and_port(address: str) -> tuple[str, int]:
    """Host and port of `host:port`, `[::1]:port` included."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def check_free(setting: str, host: str, port: int, advice: str = "") -> None:
    """UsageError when nobody can listen there."""
    try:
        # As a web server itself does it: a port that was in use a moment ago is free.
        socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        ).close()
    except OSError as error:
        raise refused(setting, str(port), error, host, advice) from None


def refused(
    setting: str, value: str, error: OSError, host: str = "", advice: str = ""
) -> UsageError:
    """One line about an address that cannot be had."""

    where = f"a port of {host}" if host else "an address"
    return UsageError(
        f"setting {setting!r} is {value}: expected {where} to listen on"
        f" ({os.strerror(error.errno or 0)}){advice}"
    )
