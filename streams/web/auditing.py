"""An audit that somebody starts from a page, in a process of its own; who and why stays."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial

import msgspec
from sqlalchemy import Connection

from streams.errors import StreamsError
from streams.operate import acts
from streams.operate.replay import Operator
from streams.settings import Settings
from streams.web import messages
from streams.web.acts import Why
from streams.web.audit_apart import audit_apart
from streams.web.messages import Refusal, Response
from streams.web.pool import Pool
from streams.web.rights import Right
from streams.web.routes import Call, Route

logger = logging.getLogger(__name__)

GOODBYE_SECONDS = 1.0


class AuditForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why, and whether everything is looked at again, not only what is new."""

    why: Why
    full: bool = False


async def start(call: Call) -> Response:
    """Audit now, unless an audit that somebody asked for is under way."""
    form = call.parameters(AuditForm)
    operator = Operator(call.who.name, form.why)

    def run(connection: Connection) -> acts.AskedAudit:
        with connection.begin():
            asked = acts.asked_audit(connection, alone=True)
            if asked is not None and asked.state == "running":
                began = f"{asked.who!r:.60} started it at {asked.at:%H:%M:%S} UTC"
                raise Refusal(409, f"an audit is under way: {began}")
            return acts.ask_audit(connection, operator, full=form.full)

    asked = await call.site.acts.run(run)
    call.site.audits.begin(operator, full=form.full)
    if call.route.is_api:
        return messages.json(asked)
    return messages.redirect(f"{call.base}proof/")


class Audits:
    """The audits that this process was asked for."""

    def __init__(self, settings: Settings, pool: Pool) -> None:
        self._settings, self._pool = settings, pool
        self._tasks: set[asyncio.Future[None]] = set()

    def begin(self, operator: Operator, *, full: bool) -> None:
        """Audit in a process of its own, as the role that acts."""
        task = asyncio.ensure_future(self._audit(operator, full=full))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End what is under way: no process outlives this one."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _audit(self, operator: Operator, *, full: bool) -> None:
        settings = self._settings
        if settings.web.acts_url:
            database = msgspec.structs.replace(settings.database, url=settings.web.acts_url)
            settings = msgspec.structs.replace(settings, database=database)
        try:
            await audit_apart(settings, full=full)
        except StreamsError as error:
            await self._failed(operator, str(error))
        except asyncio.CancelledError:
            # Whoever looks elsewhere is told, and may ask for another.
            with suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE_SECONDS):
                    await self._failed(operator, "the process that made it was stopped")
            raise

    async def _failed(self, operator: Operator, reason: str) -> None:
        logger.warning("an audit failed", extra={"reason": reason})
        try:
            await self._pool.run(partial(_note_failure, operator=operator, reason=reason))
        except StreamsError as gone:
            logger.warning("nor can that be written down", extra={"reason": str(gone)})


def _note_failure(connection: Connection, operator: Operator, reason: str) -> None:
    with connection.begin():
        acts.note_failed_audit(connection, operator, reason)


def _route(path: str) -> Route:
    return Route(
        "POST",
        path,
        Right.OPERATE,
        start,
        "Start an audit.",
        AuditForm if path.startswith("/api") else None,
        acts.AskedAudit if path.startswith("/api") else None,
        long=frozenset({"why"}),
    )


ROUTES = (_route("/proof/audit"), _route("/api/proof/audit"))
