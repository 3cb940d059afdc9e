"""The pages on a worker's own web server, beside Faust's."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from streams.settings import Settings
from streams.web.front import SHUTDOWN_SECONDS, set_up
from streams.web.health import WorkerHealth, add_health
from streams.web.probe import add_probe
from streams.web.site import Site


def add_pages(app: Any, settings: Settings, health: WorkerHealth) -> Site:
    """Add pages and health to a Faust app that has not been started; returns the pages.

    At the start its web server is set up twice, so what is added there would be there twice.
    """
    site = Site(settings)
    server = app.web
    set_up(server.web_app, site)
    add_health(server.web_app, health)
    add_probe(server.web_app, settings.web.probe, health)
    # Faust's own runner lets an open page keep a worker that was told to stop for a minute.
    server._runner = web.AppRunner(
        server.web_app, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS
    )
    return site
