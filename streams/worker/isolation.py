"""Find the guilty messages of a batch, at a bounded price and with the handler unaware.

Pieces of the batch run inside savepoints, from left to right: what succeeds stays done.  An error that names its message (by
`outbox_id`, or by the number of a row the server quotes) is followed there first; otherwise the piece is halved.  Later
messages of a conversation that waits are parked behind it, never applied past it.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from streams.errors import MessageError
from streams.events import Batch, Message
from streams.registry import Agent
from streams.worker.fate import HandlerBroken, HandlerTimeout, Verdict, decide_fate, describe, judge, sqlstate

PIECE = 128
RECENTLY = 60.0  # seconds for which a success proves that a handler's statements can work
_NUMBER = re.compile(r"\d{1,19}")


@dataclass(frozen=True, slots=True)
class Guilty:
    """A claimed message that is not applied after all; `open` while its conversation waits for it."""

    outbox_id: int
    key: str
    status: str
    attempts: int = 0
    code: str | None = None
    error: str | None = None
    delay: float | None = None
    open: bool = True


@dataclass(slots=True)
class Memory:
    """What outlives one transaction: messages that cost a connection while alone, when each biz_type last worked, who may
    still be writing outbox rows that are missing, and for how many more runs of a topic conversations may be waiting."""

    condemned: dict[int, Exception] = field(default_factory=dict)
    invisible: dict[int, frozenset[str]] = field(default_factory=dict)
    worked: dict[str, float] = field(default_factory=dict)
    waits: Counter[str] = field(default_factory=Counter)


class Isolation:
    """One transaction's search; `guilty` and `blocked` conversations grow as batches are applied."""

    def __init__(self, connection: AsyncConnection, seconds: float, memory: Memory, *, one_by_one: bool) -> None:
        self._connection, self._seconds, self._memory = connection, seconds, memory
        self._piece = 1 if one_by_one else PIECE
        self._blocked: set[str] = set()
        self._broken: dict[str, Exception] = {}
        self.guilty: list[Guilty] = []

    async def apply(self, agent: Agent, messages: Sequence[Message[Any]]) -> None:
        """Call the handler until every message is applied, guilty or parked."""
        waiting = deque([messages[at : at + self._piece] for at in range(0, len(messages), self._piece)])
        trust = True
        while waiting:
            piece = self._without_blocked(waiting.popleft())
            if not piece:
                continue
            error = await self._try(agent, piece)
            if error is None:
                self._memory.worked[agent.event.biz_type] = time.monotonic()
            elif len(piece) == 1:
                trust = True
                self._blame(agent, piece[0], error)
            else:
                place = _named(error, piece) if trust else None
                trust = place is None
                waiting.extendleft(reversed(_split(piece, place)))
        self._check_handler(agent.event.biz_type)

    def _without_blocked(self, piece: Sequence[Message[Any]]) -> list[Message[Any]]:
        behind = [one for one in piece if one.key in self._blocked]
        self.guilty += [Guilty(one.outbox_id, one.key, "parked", one.attempts) for one in behind]
        return [one for one in piece if one.key not in self._blocked]

    async def _try(self, agent: Agent, piece: Sequence[Message[Any]]) -> Exception | None:
        """The error that the handler's savepoint was rolled back for; an outage is raised."""
        if len(piece) == 1 and piece[0].outbox_id in self._memory.condemned:
            return self._memory.condemned.pop(piece[0].outbox_id)
        try:
            async with self._connection.begin_nested():
                await call(agent, piece, self._connection, self._seconds)
        except Exception as error:
            lost = self._connection.invalidated or self._connection.closed
            verdict = judge(error, lost)
            if verdict is Verdict.COSTLY and len(piece) == 1 and (lost or isinstance(error, HandlerTimeout)):
                # The savepoint may be gone with the connection: remembered for the next try of the run.
                self._memory.condemned[piece[0].outbox_id] = error
                raise
            if verdict is Verdict.WAIT or (verdict is Verdict.COSTLY and self._piece > 1):
                raise
            return error
        return None

    def _blame(self, agent: Agent, message: Message[Any], error: Exception) -> None:
        attempts = message.attempts + 1
        status, wait = decide_fate(error, attempts, agent)
        code, reason = describe(error)
        held = status == "dead" and agent.on_dead == "hold"
        if status != "dead" or held:
            self._blocked.add(message.key)
        if (sqlstate(error) or "").startswith("42"):
            self._broken.setdefault(agent.event.biz_type, error)
        guilty = Guilty(message.outbox_id, message.key, status, attempts, code, reason, wait, status != "dead" or held)
        self.guilty.append(guilty)

    def _check_handler(self, biz_type: str) -> None:
        error = self._broken.get(biz_type)
        if error is not None and time.monotonic() - self._memory.worked.get(biz_type, -RECENTLY) >= RECENTLY:
            raise HandlerBroken(f"every {biz_type} fails with {sqlstate(error)}") from error


async def call(agent: Agent, messages: Sequence[Message[Any]], connection: AsyncConnection, seconds: float) -> None:
    """The handler with these messages, for at most so many seconds."""
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            await agent.handler(Batch(messages), connection)
    except TimeoutError as error:
        if limit.expired():
            raise HandlerTimeout from error
        raise


def _named(error: Exception, piece: Sequence[Message[Any]]) -> int | None:
    """The position of the one message that this error names, if it names one."""
    if isinstance(error, MessageError):
        names = {error.outbox_id}
    else:
        diag: Any = getattr(getattr(error, "orig", error), "diag", None)
        names = {int(found) for found in _NUMBER.findall(str(getattr(diag, "message_detail", None) or ""))}
    found = [place for place, message in enumerate(piece) if message.outbox_id in names]
    return found[0] if len(found) == 1 else None


def _split(piece: Sequence[Message[Any]], place: int | None) -> list[Sequence[Message[Any]]]:
    if place is None:
        middle = len(piece) // 2
        return [piece[:middle], piece[middle:]]
    return [part for part in (piece[:place], piece[place : place + 1], piece[place + 1 :]) if part]
