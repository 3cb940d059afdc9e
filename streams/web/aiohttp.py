"""The pages for an aiohttp application, and for the servers that are ours:

from streams.web.aiohttp import pages

app.add_subapp("/outbox/", pages(access=who_asks))
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import web

from streams.settings import Settings, load
from streams.web.access import HostAccess
from streams.web.messages import Request, Response
from streams.web.site import Site


def pages(settings: Settings | None = None, access: HostAccess | None = None) -> web.Application:
    """The pages to add as a sub-application.

    `access` says who asks, else `web.access` in the settings does.

    Settings are those of faust.yml and the environment unless given.
    """
    site = Site(settings or load(), access)
    app = web.Application()

    async def answer(request: web.Request) -> web.StreamResponse:
        return await served(site, request, "/" + request.match_info["below"], ours=False)

    async def close(_: web.Application) -> None:
        await site.close()

    # A line break too, or aiohttp answers that itself.
    app.router.add_route("*", "/{below:(?s:.*)}", answer)
    app.on_cleanup.append(close)
    return app


async def served(site: Site, request: web.Request, path: str, *, ours: bool) -> web.StreamResponse:
    """What the site answers to this request.

    `path` is below the mount, `ours` says that the socket is ours.
    """
    return responded(await site.answer(asked_of(request, path, ours=ours), _chunks(request)))


def asked_of(request: web.Request, path: str, *, ours: bool) -> Request:
    """The request as the site sees it, its body not yet read."""
    return Request(
        request.method,
        path,
        request.rel_url.raw_query_string,
        [(name.lower(), value) for name, value in request.headers.items()],
        scheme=request.scheme,
        peer=_peer(request),
        ours=ours,
        native=request,
    )


def responded(response: Response) -> web.Response:
    """The response as aiohttp sends it."""
    return web.Response(status=response.status, body=response.body, headers=response.headers)


def _peer(request: web.Request) -> str | None:
    """The other end of the socket; not `request.remote`, which an application may have replaced."""
    name = request.transport.get_extra_info("peername") if request.transport else None
    return str(name[0]) if isinstance(name, tuple) and name else None


async def _chunks(request: web.Request) -> AsyncIterator[bytes]:
    async for chunk in request.content.iter_any():
        yield chunk
