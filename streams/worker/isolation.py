"""Find the guilty messages of a batch, at a bounded price and with the handler unaware.

Pieces of the batch run behind savepoints, conversation by conversation: what succeeds stays done.  An error that names its
message (by `outbox_id`, or by the number of a row the server quotes) is followed there first, then the number of rows that
the call had inserted when it failed; otherwise the piece is halved.  Later messages of a conversation that waits are parked
behind it, never applied past it.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection

from streams.errors import MessageError
from streams.events import Batch, Message
from streams.registry import Agent
from streams.worker.fate import Costly, HandlerBroken, HandlerTimeout, Verdict, decide_fate, describe, judge, sqlstate
from streams.worker.reached import Reached
from streams.worker.savepoint import Savepoint

WORTH = 40  # messages that cost as much as one call of a handler does, however few messages it gets
MOST_PIECE = 1000
MOSTLY = 0.3  # of messages that fail: each is tried alone
LEAST_GUILTY = 0.001  # never nothing: it divides
RECENTLY = (
    60.0  # seconds for which a success proves that a handler's statements can work, and a failure that others may fail
)
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
    guilty: float = LEAST_GUILTY
    half_life: float = 5000.0  # messages

    @property
    def piece(self) -> int:
        """How many messages cost least to try at once.

        A call costs as much as WORTH messages, and one that fails is lost with what it did: many small pieces cost calls, few
        large ones lose much.  Where most fail, nothing is saved by trying two at once.
        """
        if self.guilty > MOSTLY * self.messages:
            return 1
        return min(MOST_PIECE, max(1, round(math.sqrt(WORTH * self.messages / self.guilty))))

    def add(self, *, messages: int = 0, guilty: int = 0) -> None:
        """What was found; older findings fade as messages pass."""
        fade = 0.5 ** (messages / self.half_life)
        self.messages, self.guilty = self.messages * fade + messages, max(LEAST_GUILTY, self.guilty * fade + guilty)


def _failed_before() -> Density:
    """What failed is likely to fail again, until what was wrong is mended; then a few calls show it."""
    return Density(messages=2.0, guilty=1.0, half_life=100.0)


@dataclass(slots=True)
class Memory:
    """What outlives one transaction: messages that cost a connection while alone, when each biz_type last worked and when a
    message of each topic failed for the first time, who may still be writing outbox rows that are missing, for how many more
    runs of a topic conversations may be waiting, how often each biz_type fails, for the first time and again, and whose
    inserted rows once told nothing of who is guilty."""

    condemned: dict[int, Exception] = field(default_factory=dict)
    invisible: dict[int, frozenset[str]] = field(default_factory=dict)
    worked: dict[str, float] = field(default_factory=dict)
    failed: dict[str, float] = field(default_factory=dict)
    waits: Counter[str] = field(default_factory=Counter)
    first: defaultdict[str, Density] = field(default_factory=lambda: defaultdict(Density))
    again: defaultdict[str, Density] = field(default_factory=lambda: defaultdict(_failed_before))
    misled: set[str] = field(default_factory=set)

    def wary(self, topic: str) -> bool:
        """Whether messages of the topic fail of late, and so often that it is worth trying few at once."""
        if time.monotonic() - self.failed.get(topic, -RECENTLY) >= RECENTLY:
            return False
        return any(density.piece < MOST_PIECE for density in self.first.values())


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
        self._reached: Reached | None = None
        self._blocked: set[str] = set()
        self._broken: dict[str, Exception] = {}
        self.guilty: list[Guilty] = []

    async def apply(self, agent: Agent, messages: Sequence[Message[Any]]) -> None:
        """Call the handler until every message is applied, guilty or parked."""
        biz_type = agent.event.biz_type
        # What failed before says nothing about what comes.
        density = (self._memory.again if messages[0].attempts else self._memory.first)[biz_type]
        in_pieces = not self._one_by_one and min(density.piece, len(messages)) > 1
        self._reached = None
        if agent.effect is not None and in_pieces and biz_type not in self._memory.misled:
            self._reached = Reached(self._savepoint, agent.effect.table, self._seconds)
        # A handler merges what is of one conversation only within a call.
        left: Sequence[Message[Any]] = sorted(messages, key=attrgetter("key"))
        while left:
            size = 1 if self._one_by_one else density.piece
            piece, left = self._without_blocked(left[:size]), left[size:]
            if piece and (failed := await self._try(agent, piece)) is not None:
                left = [*await self._find(agent, piece, failed), *left]
                density.add(guilty=1)
        density.add(messages=len(messages))
        self._check_handler(biz_type)

    async def _find(self, agent: Agent, piece: Sequence[Message[Any]], failed: _Failed | None) -> list[Message[Any]]:
        """Blame the first failing message of a piece that failed, and apply those before it; returns those behind it.

        When what is left of the guilty one turns out to be good, it is in the rest: that need not fail once more.
        """
        behind: list[Message[Any]] = []
        guess: Guess | None = None
        while len(piece) > 1:
            guess = failed.guess(piece) if failed is not None and self._trust else None
            if guess is not None and guess.place == 0:
                piece, behind, failed = piece[:1], [*piece[1:], *behind], None
                break
            cut = guess.place if guess is not None else len(piece) // 2
            failed = await self._try(agent, piece[:cut])
            if failed is not None:
                self._learn(agent, guess, right=False)
                piece, behind = piece[:cut], [*piece[cut:], *behind]
            elif guess is not None:
                piece, behind = piece[cut : cut + 1], [*piece[cut + 1 :], *behind]
            else:
                piece = piece[cut:]
        if failed is None:
            failed = await self._try(agent, piece)
            self._learn(agent, guess, right=failed is not None)
        # What named the wrong one is not believed again before the right one is found.
        self._trust = failed is not None or guess is None
        if failed is not None:
            self._blame(agent, piece[0], failed.error)
        return behind

    def _learn(self, agent: Agent, guess: Guess | None, *, right: bool) -> None:
        """A handler whose rows were no help once is not counted on again."""
        if guess is not None and guess.counted and not right:
            self._memory.misled.add(agent.event.biz_type)
            self._reached = None

    def _without_blocked(self, piece: Sequence[Message[Any]]) -> list[Message[Any]]:
        behind = [one for one in piece if one.key in self._blocked]
        self.guilty += [Guilty(one.outbox_id, one.key, "parked", one.attempts) for one in behind]
        return [one for one in piece if one.key not in self._blocked]

    async def _try(self, agent: Agent, piece: Sequence[Message[Any]]) -> _Failed | None:
        """How it failed, what the handler did being undone; an outage is raised."""
        if len(piece) == 1 and (known := self._memory.condemned.get(piece[0].outbox_id)) is not None:
            return _Failed(known)
        try:
            await self._savepoint.set()
            if self._reached is not None:
                await self._reached.begin()
            await call(agent, piece, self._connection, self._seconds)
        except Exception as error:
            lost = self._connection.invalidated or self._connection.closed
            verdict = judge(error, lost)
            certain = len(piece) == 1 and (self._one_by_one or piece[0].attempts > 0)
            if verdict is Verdict.COSTLY and certain and (lost or isinstance(error, HandlerTimeout)):
                # The savepoint may be gone with the connection: charged in the next try of the run.
                raise Costly(piece[0].outbox_id, error) from error
            if verdict is Verdict.WAIT or (verdict is Verdict.COSTLY and not certain):
                raise
            if self._reached is not None:
                return _Failed(error, await self._reached.undo())
            await self._savepoint.undo()
            return _Failed(error)
        if self._reached is not None:
            self._reached.applied(len(piece))
        self._memory.worked[agent.event.biz_type] = time.monotonic()
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


class Guess(NamedTuple):
    """Where in a piece the guilty message may be, and whether only the number of rows says so."""

    place: int
    counted: bool


@dataclass(frozen=True, slots=True)
class _Failed:
    """How a call failed, and how many rows it had inserted before, if that is known."""

    error: Exception
    rows: int | None = None

    def guess(self, piece: Sequence[Message[Any]]) -> Guess | None:
        """The one message that the error names; without a name, that of the row which was not inserted any more."""
        place = _named(self.error, piece)
        if place is not None:
            return Guess(place, counted=False)
        # Nothing inserted, or everything: it failed elsewhere.
        return Guess(self.rows, counted=True) if self.rows is not None and 0 < self.rows < len(piece) else None


def _named(error: Exception, piece: Sequence[Message[Any]]) -> int | None:
    """The position of the one message that this error names, if it names one."""
    if isinstance(error, MessageError):
        names = {error.outbox_id}
    else:
        diag: Any = getattr(getattr(error, "orig", error), "diag", None)
        names = {int(found) for found in _NUMBER.findall(str(getattr(diag, "message_detail", None) or ""))}
    found = [place for place, message in enumerate(piece) if message.outbox_id in names]
    return found[0] if len(found) == 1 else None
