"""The pages for an ASGI application, as FastAPI and Starlette mount them:

from streams.web.asgi import pages

app.mount("/outbox", pages(access=who_asks))
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from streams.settings import Settings, load
from streams.web.access import HostAccess
from streams.web.messages import Request, Response, redirect
from streams.web.site import Site

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Pages:
    """An ASGI application; `aclose` gives its connections back."""

    def __init__(self, site: Site) -> None:
        self.site = site

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request; a websocket is refused."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        else:
            await _send(send, await self._answer(scope, receive))

    async def aclose(self) -> None:
        """Close all connections."""
        await self.site.close()

    async def _answer(self, scope: Message, receive: Receive) -> Response:
        root, path = scope.get("root_path", ""), scope["path"]
        # A server may leave the mount's own path in, or take it out.
        below = path.removeprefix(root) if root and path.startswith(root) else path
        if not below:
            return redirect(f"{root.rpartition('/')[2]}/", 308)
        client = scope.get("client")
        request = Request(
            scope["method"],
            below,
            scope.get("query_string", b"").decode("latin-1"),
            [
                (name.decode("latin-1").lower(), value.decode("latin-1"))
                for name, value in scope["headers"]
            ],
            scheme=scope.get("scheme", "http"),
            peer=client[0] if client else None,
            native=scope,
        )
        return await self.site.answer(request, _chunks(receive))

    async def _live(self, receive: Receive, send: Send) -> None:
        """Where the pages are the whole application."""
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return


def pages(settings: Settings | None = None, access: HostAccess | None = None) -> Pages:
    """The pages to mount; `access` says who asks, else `web.access` in the settings does.

    Settings are those of faust.yml and the environment unless given.
    """
    return Pages(Site(settings or load(), access))


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] != "http.request":  # the client is gone
            return
        yield message.get("body", b"")
        if not message.get("more_body"):
            return


async def _send(send: Send, response: Response) -> None:
    headers = [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in response.headers.items()
    ]
    if response.status != 304:
        headers.append((b"content-length", str(len(response.body)).encode()))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})
