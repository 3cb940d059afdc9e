"""The pages without a server: a request in, a response out, whatever stands before them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

from sqlalchemy import Connection

from streams.database import query
from streams.errors import (
    NotMigrated,
    ServiceUnreachable,
    SettingsInvalid,
    StreamsError,
    UsageError,
)
from streams.operate.look import Memory
from streams.registry import Registry, configured
from streams.settings import Settings
from streams.web import guard, messages, render
from streams.web.access import Access, HostAccess
from streams.web.auditing import Audits
from streams.web.body import read_body
from streams.web.messages import Refusal, Request, Response
from streams.web.operating import Operations
from streams.web.pool import ACT, READ, Pool
from streams.web.rights import Identity
from streams.web.routes import Call, find
from streams.web.shared import Shared
from streams.web.table import ROUTES

logger = logging.getLogger(__name__)

FOLLOW_SECONDS = 2.0
FOLLOW_EVERY = 0.05


class Site:
    """All pages and the API of one deployment.

    `host` says who asks, where an application mounts them.

    `process` tells the metrics of the process around it, where that is a worker.

    Nothing is connected before the first request; `close` gives everything back.
    """

    def __init__(self, settings: Settings, host: HostAccess | None = None) -> None:
        web = settings.web
        self.settings = settings
        self.process: Callable[[], bytes] | None = None
        self.access = Access(web, host)
        self.memory = Memory()
        self.pool = Pool(lambda: web.database_url or settings.database_url, "pages", READ, 2)
        self.shared = Shared(self.pool.spent)
        self.acts = Pool(lambda: web.acts_url or settings.database_url, "acts", ACT, 2)
        self.operations = Operations(self.acts)
        self.audits = Audits(settings, self.acts)
        self._registry: Registry | None = None

    async def answer(self, request: Request, body: AsyncIterator[bytes] | None = None) -> Response:
        """The response to a request, never an exception.

        It has the headers that every response has. `body` is read once it is known that whoever
        asks may send one.
        """
        try:
            response = await self._answer(request, body)
        except Refusal as refusal:
            response = self._refused(request, refusal)
        except Exception as error:
            # Never the request itself: what somebody typed is in it.
            logger.exception("a page failed", extra={"error": type(error).__name__})
            response = self._refused(
                request, Refusal(500, "the page failed, the log of this process says why")
            )
        if request.method == "HEAD":
            response = Response(response.status, b"", response.headers)
        return guard.guarded(response)

    async def registry(self) -> Registry:
        """The biz_types of this deployment, for whoever checks a payload."""
        if self._registry is None:
            self._registry = await asyncio.to_thread(configured, self.settings)
        return self._registry

    async def close(self) -> None:
        """Close all connections; operations go on elsewhere, or later, and audits end."""
        self.operations.close()
        await self.audits.close()
        self.pool.close()
        self.acts.close()

    async def _answer(self, request: Request, body: AsyncIterator[bytes] | None) -> Response:
        guard.check_host(request, self.settings.web.hosts)
        try:
            route, named = find(ROUTES, request.method, request.path)
        except Refusal:
            # Which pages there are is nobody's business who may see none.
            await self._identified(request)
            raise
        identity = None if route.right is None else await self._identified(request)
        if route.method == "POST":
            bearer = identity is not None and identity.how == "token"
            guard.check_origin(request, self.settings.web.origins, bearer=bearer)
        if route.right is not None and identity is not None and route.right not in identity.rights:
            raise Refusal(
                403,
                f"this needs the right {route.right}, which {identity.name!r:.60} does not have",
            )
        if route.method == "POST" and body is not None:
            request = replace(request, body=await read_body(body, route.most_bytes))
        given = {**(request.form if route.method == "POST" else request.parameters), **named}
        guard.check_parameters(given, long=route.long)
        response = await self._served(Call(self, request, route, identity, given))
        if route.method == "POST" and route.right is not None and response.status < 400:
            # Whoever acts sees what came of it, not what was there a moment before. A login is no
            # act: strangers may try one, again and again.
            if self.settings.web.database_url:
                await self._followed()
            self.shared.renew()
        return response

    async def _followed(self) -> None:
        """Wait until pages' own database, which may be a replica, shows what was done.

        That is not for long: a page says how far a replica is behind.
        """
        with suppress(StreamsError, TimeoutError):
            async with asyncio.timeout(FOLLOW_SECONDS):
                until = await self.acts.run(_written_until)
                shows = partial(_shows_until, until=until)
                while not await self.pool.run(shows):  # noqa: ASYNC110, a server tells nobody
                    await asyncio.sleep(FOLLOW_EVERY)

    async def _served(self, call: Call) -> Response:
        try:
            return await call.route.answer(call)
        except (ServiceUnreachable, NotMigrated, SettingsInvalid) as error:
            raise Refusal(503, str(error)) from None
        except UsageError as error:
            raise Refusal(400, str(error)) from None
        except StreamsError as error:
            raise Refusal(409, str(error)) from None

    async def _identified(self, request: Request) -> Identity:
        identity = await self.access.identify(request)
        if identity is None:
            raise Refusal(401, "nobody is logged in")
        return identity

    def _refused(self, request: Request, refusal: Refusal) -> Response:
        """One line, as a page for a person and as JSON for a program.

        A person who is not logged in is sent to the login.
        """
        wants_page = request.wants_page and not request.path.startswith(("/api/", "/metrics"))
        base = "../" * max(0, request.path.count("/") - 1) or "./"
        if (
            refusal.status == 401
            and wants_page
            and self.access.has_login
            and request.method in ("GET", "HEAD")
        ):
            asked = request.path.lstrip("/") + (f"?{request.query}" if request.query else "")
            return messages.redirect(render.link(f"{base}login", next=asked).unescape())
        headers = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else {}
        if wants_page:
            text = render.page("refused.html", status=refusal.status, line=refusal.line, base=base)
            response = messages.html(text, refusal.status)
        else:
            response = messages.json({"error": refusal.line}, refusal.status)
        return Response(
            response.status, response.body, {**response.headers, **headers, **refusal.headers}
        )


def _written_until(connection: Connection) -> str:
    until: str = connection.exec_driver_sql(query("written_until")).scalar_one()
    return until


def _shows_until(connection: Connection, until: str) -> bool:
    shows: bool = connection.exec_driver_sql(query("shows_until"), {"until": until}).scalar_one()
    return shows
