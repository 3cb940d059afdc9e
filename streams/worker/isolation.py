"""Find the guilty messages of a batch, at a bounded price and with the handler unaware.

Pieces of the batch run behind savepoints, from left to right: what succeeds stays done.  An error that names its message (by
`outbox_id`, or by the number of a row the server quotes) is followed there first; otherwise the piece is halved.  Later
messages of a conversation that waits are parked behind it, never applied past it.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from streams.errors import MessageError
from streams.events import Batch, Message
from streams.registry import Agent
from streams.worker.fate import HandlerBroken, HandlerTimeout, Verdict, decide_fate, describe, judge, sqlstate
from streams.worker.savepoint import Savepoint

WORTH = 25  # messages that cost as much as one call of a handler does, however few messages it gets
MOST_PIECE = 1000
HALF_LIFE = 5000  # messages
LEAST_GUILTY = 0.001  # never nothing: it divides
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
class Density:
    """How often messages of a biz_type fail, of late: it decides how many are tried at once."""

    messages: float = 500.0
    guilty: float = 1.0

    @property
    def piece(self) -> int:
        """How many messages cost least to try at once.

        A call costs as much as WORTH messages, and one that fails is lost with what it did: many small pieces cost calls, few
        large ones lose much.
        """
        return min(MOST_PIECE, max(1, round(math.sqrt(WORTH * self.messages / self.guilty))))

    def add(self, *, messages: int = 0, guilty: int = 0) -> None:
        """What was found; older findings fade as messages pass."""
        fade = 0.5 ** (messages / HALF_LIFE)
        self.messages, self.guilty = self.messages * fade + messages, max(LEAST_GUILTY, self.guilty * fade + guilty)


@dataclass(slots=True)
class Memory:
    """What outlives one transaction: messages that cost a connection while alone, when each biz_type last worked, who may
    still be writing outbox rows that are missing, for how many more runs of a topic conversations may be waiting, and how often
    each biz_type fails."""

    condemned: dict[int, Exception] = field(default_factory=dict)
    invisible: dict[int, frozenset[str]] = field(default_factory=dict)
    worked: dict[str, float] = field(default_factory=dict)
    waits: Counter[str] = field(default_factory=Counter)
    densities: dict[str, Density] = field(default_factory=dict)

    def density(self, biz_type: str) -> Density:
        """How often this one fails."""
        return self.densities.setdefault(biz_type, Density())


class Isolation:
    """One transaction's search; `guilty` and `blocked` conversations grow as batches are applied."""

    def __init__(
        self,
        connection: AsyncConnection,
        savepoint: Savepoint,
        seconds: float,
        memory: Memory,
        *,
        one_by_one: bool,
    ) -> None:
        self._connection, self._savepoint, self._seconds, self._memory = connection, savepoint, seconds, memory
        self._one_by_one = one_by_one
        self._trust = True
        self._blocked: set[str] = set()
        self._broken: dict[str, Exception] = {}
        self.guilty: list[Guilty] = []

    async def apply(self, agent: Agent, messages: Sequence[Message[Any]]) -> None:
        """Call the handler until every message is applied, guilty or parked."""
        density = self._memory.density(agent.event.biz_type)
        left = messages
        while left:
            size = 1 if self._one_by_one else density.piece
            piece, left = self._without_blocked(left[:size]), left[size:]
            if piece and (error := await self._try(agent, piece)) is not None:
                left = [*await self._find(agent, piece, error), *left]
        # What failed before says nothing about what comes.
        density.add(messages=sum(not one.attempts for one in messages))
        self._check_handler(agent.event.biz_type)

    async def _find(self, agent: Agent, piece: Sequence[Message[Any]], error: Exception | None) -> list[Message[Any]]:
        """Blame the first failing message of a piece that failed, and apply those before it; returns those behind it.

        When what is left of the guilty one turns out to be good, it is in the rest: that need not fail once more.
        """
        behind: list[Message[Any]] = []
        named = False
        while len(piece) > 1:
            place = _named(error, piece) if error is not None and self._trust else None
            if place == 0:
                piece, behind, error, named = piece[:1], [*piece[1:], *behind], None, True
                continue
            cut = place or len(piece) // 2
            error = await self._try(agent, piece[:cut])
            if error is not None:
                piece, behind = piece[:cut], [*piece[cut:], *behind]
            elif place is not None:
                piece, behind, named = piece[cut : cut + 1], [*piece[cut + 1 :], *behind], True
            else:
                piece = piece[cut:]
        if error is None:
            error = await self._try(agent, piece)
        # What named the wrong one is not believed again before the right one is found.
        self._trust = error is not None or not named
        if error is not None:
            self._blame(agent, piece[0], error)
        return behind

    def _without_blocked(self, piece: Sequence[Message[Any]]) -> list[Message[Any]]:
        behind = [one for one in piece if one.key in self._blocked]
        self.guilty += [Guilty(one.outbox_id, one.key, "parked", one.attempts) for one in behind]
        return [one for one in piece if one.key not in self._blocked]

    async def _try(self, agent: Agent, piece: Sequence[Message[Any]]) -> Exception | None:
        """The error for which what the handler did was undone; an outage is raised."""
        if len(piece) == 1 and piece[0].outbox_id in self._memory.condemned:
            return self._memory.condemned.pop(piece[0].outbox_id)
        try:
            await self._savepoint.set()
            await call(agent, piece, self._connection, self._seconds)
        except Exception as error:
            lost = self._connection.invalidated or self._connection.closed
            verdict = judge(error, lost)
            if verdict is Verdict.COSTLY and len(piece) == 1 and (lost or isinstance(error, HandlerTimeout)):
                # The savepoint may be gone with the connection: remembered for the next try of the run.
                self._memory.condemned[piece[0].outbox_id] = error
                raise
            if verdict is Verdict.WAIT or (verdict is Verdict.COSTLY and not self._one_by_one):
                raise
            await self._savepoint.undo()
            return error
        self._memory.worked[agent.event.biz_type] = time.monotonic()
        return None

    def _blame(self, agent: Agent, message: Message[Any], error: Exception) -> None:
        if not message.attempts:
            self._memory.density(agent.event.biz_type).add(guilty=1)
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
