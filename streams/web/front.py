"""What stands before everything on a socket of ours: health, pages, and rights for the rest.

A worker's web server has pages of Faust's own; whoever may see ours may see those, by the same
rules. `GET /` leads a browser to the pages and gives everybody else what it always gave.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from streams.web import guard, messages
from streams.web.aiohttp import asked_of, responded, served
from streams.web.messages import Refusal, Response
from streams.web.rights import Right
from streams.web.site import Site

MOUNT = "/outbox"
SHUTDOWN_SECONDS = 1.0
"""How long an open page may keep a server that was told to stop."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def set_up(app: web.Application, site: Site) -> None:
    """Put the pages before this application's own routes; before it has been started."""

    @web.middleware
    async def front(request: web.Request, handler: Handler) -> web.StreamResponse:
        path = request.path
        if path == MOUNT:
            return responded(guard.guarded(messages.redirect(f"{MOUNT[1:]}/", 308)))
        if path.startswith(f"{MOUNT}/"):
            return await served(site, request, path.removeprefix(MOUNT), ours=True)
        if path == "/metrics" or path.startswith("/metrics/"):
            return await served(site, request, path, ours=True)
        if path.startswith("/health/"):
            return await handler(request)
        return await _other(site, request, handler)

    async def begin(_: web.Application) -> None:
        # What was submitted while nobody could work it, or was left by a process that died.
        site.operations.watch()

    async def close(_: web.Application) -> None:
        await site.close()

    app.on_startup.append(begin)
    app.middlewares.append(front)
    app.on_response_prepare.append(_with_headers)
    app.on_cleanup.append(close)


async def _other(site: Site, request: web.Request, handler: Handler) -> web.StreamResponse:
    """A route that is not ours: with the right to view, asked for by a Host that is ours."""
    asked = asked_of(request, request.path, ours=True)
    try:
        guard.check_host(asked, site.settings.web.hosts)
        if request.path == "/" and request.method in ("GET", "HEAD") and asked.wants_page:
            return responded(guard.guarded(messages.redirect(f"{MOUNT[1:]}/", 302, vary="Accept")))
        identity = await site.access.identify(asked)
        if identity is None:
            raise Refusal(401, "nobody is logged in")
        if Right.VIEW not in identity.rights:
            raise Refusal(
                403, f"this needs the right {Right.VIEW}, which {identity.name!r:.60} does not have"
            )
        if request.method not in ("GET", "HEAD"):
            line = f"{request.method[:10]} is not served here: expected GET, HEAD"
            raise Refusal(405, line, allow="GET, HEAD")
    except Refusal as refusal:
        return responded(_refused(refusal))
    return await handler(request)


def _refused(refusal: Refusal) -> Response:
    headers = {"www_authenticate": "Bearer"} if refusal.status == 401 else {}
    response = messages.json({"error": refusal.line}, refusal.status, **headers)
    return guard.guarded(
        Response(response.status, response.body, {**response.headers, **refusal.headers})
    )


async def _with_headers(_: web.Request, response: Any) -> None:
    """On whatever goes out, what aiohttp and Faust answer themselves included."""
    for name, value in guard.HEADERS.items():
        response.headers.setdefault(name, value)
