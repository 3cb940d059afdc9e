"""Bulk acts from a page: preview, submit, stop, resume; and the work of what was submitted."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from functools import partial
from typing import Annotated

import msgspec
from sqlalchemy import Connection

from streams.database import query
from streams.errors import ServiceUnreachable, UsageError
from streams.message_id import MAX_ID
from streams.operate import Choice, Operator, operations
from streams.operate.operations import Operation
from streams.web import messages
from streams.web.acts import Why
from streams.web.messages import Refusal, Response
from streams.web.pages.operations import Number
from streams.web.pages.parameters import Since
from streams.web.pool import DatabaseRefuses, Pool
from streams.web.rights import Right
from streams.web.routes import Call, Route

logger = logging.getLogger(__name__)

AGAIN_SECONDS = 5.0
LOOK_SECONDS = 60.0


class PreviewForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which dead messages, and why: parts that are not given let everything through.

    `error` is an error code or a cause's fingerprint. `force`: also those that were replayed three
    times already.
    """

    why: Why
    error: str | None = None
    biz_type: str | None = None
    source: str | None = None
    key: str | None = None
    since: Since | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_ID)] | None = None
    force: bool = False


class OperationForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which operation."""

    operation: Number


async def preview(call: Call, act: str, *, at_once: bool = False) -> Response:
    """Write down what an act would do.

    Nothing is done before it is submitted, unless it is to one message.
    """
    form = call.parameters(PreviewForm)
    if at_once and form.limit != 1:
        raise Refusal(400, f"'limit' is {form.limit}: expected 1, try one")
    choice = Choice(
        source=form.source,
        biz_type=form.biz_type,
        key=form.key,
        error=form.error,
        since=form.since,
        limit=form.limit,
    )
    if choice.empty:
        raise Refusal(400, "expected a filter: error, biz_type, source, key, since or limit")
    operator = Operator(call.who.name, form.why)

    def run(connection: Connection) -> Operation:
        made = operations.preview(connection, act, choice, operator, force=form.force)
        return operations.submit(connection, made.id, operator) if at_once else made

    return await _done(call, run)


async def submit(call: Call) -> Response:
    """Let a preview be worked, exactly as it was."""
    number = call.parameters(OperationForm).operation

    def run(connection: Connection) -> Operation:
        _permitted(call, connection, number)
        return operations.submit(connection, number, Operator(call.who.name))

    return await _done(call, run)


async def stop(call: Call) -> Response:
    """Work no further step of it."""
    number = call.parameters(OperationForm).operation
    return await _done(
        call, lambda connection: operations.stop(connection, number, Operator(call.who.name))
    )


async def resume(call: Call) -> Response:
    """Let a stopped operation go on."""
    number = call.parameters(OperationForm).operation

    def run(connection: Connection) -> Operation:
        _permitted(call, connection, number)
        return operations.resume(connection, number, Operator(call.who.name))

    return await _done(call, run)


def _permitted(call: Call, connection: Connection, number: int) -> None:
    """Refusal when whoever asks may not let this operation be worked."""
    act = operations.operation(connection, number).act
    if act == "discard" and Right.DISCARD not in call.who.rights:
        raise Refusal(
            403, f"this needs the right discard, which {call.who.name!r:.60} does not have"
        )


async def _done(call: Call, run: Callable[[Connection], Operation]) -> Response:
    operation = await call.site.acts.run(run)
    call.site.operations.take_up()
    if call.route.is_api:
        return messages.json(operation)
    return messages.redirect(f"{call.base}operations/{operation.id}")


class Operations:
    """Works what was submitted, here or elsewhere.

    It does so as long as something is running and nobody else works it.
    """

    def __init__(self, pool: Pool, look_seconds: float = LOOK_SECONDS) -> None:
        self._pool, self._look_seconds = pool, look_seconds
        self._task: asyncio.Future[None] | None = None
        self._watching: asyncio.Future[None] | None = None
        self._refused: str | None = None

    def take_up(self) -> asyncio.Future[None]:
        """Begin, unless it is under way; done when nothing is left to work here."""
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._work())
        return self._task

    def watch(self) -> None:
        """Take up again and again, until it is closed, what whoever worked it has left.

        A command that was killed, or a process that died, tells nobody.
        """
        self._watching = asyncio.ensure_future(self._watch())

    def close(self) -> None:
        """Go no further; whoever comes next goes on where this ended."""
        for task in (self._watching, self._task):
            if task is not None:
                task.cancel()
        self._watching = self._task = None

    async def _watch(self) -> None:
        while True:
            unused = not self._pool.is_open
            await asyncio.wait([self.take_up()])
            if unused:
                self._pool.rest()  # a connection for each worker is too much for a look
            await asyncio.sleep(self._look_seconds * random.uniform(0.8, 1.2))

    async def _work(self) -> None:
        while True:
            try:
                pause = await self._pool.run(_work_all)
            except (DatabaseRefuses, UsageError) as error:
                # A role that may not act, a database that is not migrated: whoever may, works it.
                if str(error) != self._refused:
                    logger.info("operations are not worked here", extra={"reason": str(error)})
                self._refused = str(error)
                return
            except ServiceUnreachable:
                pause = AGAIN_SECONDS
            except Exception:  # a fault of ours: said, and the next one submitted takes them up
                logger.exception("operations are not worked here")
                return
            else:
                self._refused = None
            if pause is None:
                return
            await asyncio.sleep(pause)


def _work_all(connection: Connection) -> float | None:
    """Seconds after which to come back; None when nothing is running."""
    with connection.begin():
        running = connection.exec_driver_sql(query("operations_running")).first()
    return operations.work_all(connection) if running else None


def _both(
    path: str, right: Right, answer: Callable[..., object], about: str, takes: type[msgspec.Struct]
) -> tuple[Route, ...]:
    long = frozenset({"why"})
    return (
        Route("POST", path, right, answer, about, long=long),  # type: ignore[arg-type]
        Route("POST", f"/api{path}", right, answer, about, takes, Operation, long=long),  # type: ignore[arg-type]
    )


ROUTES: tuple[Route, ...] = (
    *_both(
        "/operations/replay",
        Right.OPERATE,
        partial(preview, act="replay"),
        "Preview a bulk replay.",
        PreviewForm,
    ),
    *_both(
        "/operations/try",
        Right.OPERATE,
        partial(preview, act="replay", at_once=True),
        "Replay one message of a filter, at once.",
        PreviewForm,
    ),
    *_both(
        "/operations/discard",
        Right.DISCARD,
        partial(preview, act="discard"),
        "Preview a bulk discard.",
        PreviewForm,
    ),
    *_both(
        "/operations/{operation}/submit",
        Right.OPERATE,
        submit,
        "Let a preview be worked.",
        OperationForm,
    ),
    *_both(
        "/operations/{operation}/stop", Right.OPERATE, stop, "Stop an operation.", OperationForm
    ),
    *_both(
        "/operations/{operation}/resume",
        Right.OPERATE,
        resume,
        "Let a stopped operation go on.",
        OperationForm,
    ),
)
