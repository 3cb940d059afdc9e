"""Find the guilty messages of a batch, at a bounded price and with the handler unaware.

Pieces of the batch run behind savepoints, conversation by conversation: what succeeds stays done.  An error that names its
message (by `outbox_id`, or by the number of a row the server quotes) is followed there first, then the number of rows that
the call had inserted when it failed; otherwise the piece is halved.  Later messages of a conversation that waits are parked
behind it, never applied past it.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from operator import attrgetter
from typing import Any, NamedTuple

from streams.errors import MessageError
from streams.events import Message
from streams.registry import Agent
from streams.worker.failure.classify import (
    HandlerBroken,
    HandlerTimeout,
    MessageExhausted,
    TransactionEnded,
    Verdict,
    decisive,
    delay,
    describe,
    fate_of,
    jittered,
    meets_everybody,
    verdict_on,
)
from streams.worker.failure.doubt import Doubt
from streams.worker.failure.handler_call import HandlerCaller
from streams.worker.failure.insert_counter import InsertCounter
from streams.worker.failure.savepoint import Savepoint

WORTH = 40  # messages that cost as much as one call of a handler does, however few messages it gets
MOST_PIECE = 1000
LOST_ALONE = 3  # connections that one message may lose, worked alone, before it is charged
MOSTLY = 0.3  # of messages that fail: each is tried alone
LEAST_GUILTY = 0.001  # never nothing: it divides
RECENTLY = 60.0  # seconds for which a failure makes others of its topic likely
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
class FailureRate:
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


def _failed_before() -> FailureRate:
    """What failed is likely to fail again, until what was wrong is mended; then a few calls show it."""
    return FailureRate(messages=2.0, guilty=1.0, half_life=100.0)


class Blame(Enum):
    """What a failure means for its message: an attempt, the same attempt later, or nothing, since it is applied after all."""

    CHARGED = auto()
    DEFERRED = auto()
    NONE = auto()


@dataclass(slots=True)
class Trouble:
    """What may be met by every message of a biz_type: which have met it, and whether one worked since the first had."""

    messages: set[int] = field(default_factory=set)
    disproved: bool = False

    def is_everybodys(self, enough: int) -> bool:
        """Whether nothing says that it is the fault of those who met it."""
        return not self.disproved and len(self.messages) >= enough


@dataclass(slots=True)
class FailureHistory:
    """What outlives one transaction.

    condemned    messages that cost time or a connection while they were alone, and how
    lost_alone   how many connections each message has lost while it was alone
    invisible    ids without an outbox row, and who may be committing it
    troubles     what every message of a biz_type may be meeting now, by biz_type and SQLSTATE
    sound        the message of each biz_type that worked last
    failed       when a message of each topic last failed for the first time
    waits        for how many more runs of a topic conversations may be waiting
    first        how often messages of each biz_type fail, the first time
    again        the same of those that failed before
    misled       biz_types whose inserted rows once told nothing of who is guilty
    deferred     whether a COMMIT failed although every call had succeeded
    """

    known_failures: dict[int, Exception] = field(default_factory=dict)
    lost_alone: Counter[int] = field(default_factory=Counter)
    invisible: dict[int, Doubt] = field(default_factory=dict)
    troubles: dict[tuple[str, str], Trouble] = field(default_factory=dict)
    sound: dict[str, Message[Any]] = field(default_factory=dict)
    failed: dict[str, float] = field(default_factory=dict)
    waits: Counter[str] = field(default_factory=Counter)
    first: defaultdict[str, FailureRate] = field(default_factory=lambda: defaultdict(FailureRate))
    again: defaultdict[str, FailureRate] = field(default_factory=lambda: defaultdict(_failed_before))
    row_count_unreliable: set[str] = field(default_factory=set)
    deferred: bool = False

    def worked(self, biz_type: str, messages: Sequence[Message[Any]]) -> None:
        """A call succeeded: what other messages of this biz_type have met is not what everybody meets."""
        self.sound[biz_type] = messages[-1]
        for (kind, _), trouble in self.troubles.items():
            if kind == biz_type:
                trouble.disproved = True

    def recently_failing(self, topic: str) -> bool:
        """Whether messages of the topic fail of late, and so often that it is worth trying few at once."""
        if time.monotonic() - self.failed.get(topic, -RECENTLY) >= RECENTLY:
            return False
        return any(density.piece < MOST_PIECE for density in self.first.values())


class Isolation:
    """One transaction's search; `guilty` and `blocked` conversations grow as batches are applied."""

    def __init__(
        self,
        caller: HandlerCaller,
        savepoint: Savepoint,
        seconds: float,
        memory: FailureHistory,
        *,
        one_by_one: bool,
    ) -> None:
        self._caller, self._savepoint, self._seconds, self._memory = caller, savepoint, seconds, memory
        self._one_by_one = one_by_one
        self._trust = True
        self._reached: InsertCounter | None = None
        self._blocked: set[str] = set()
        self._broken: dict[tuple[str, str], tuple[int, Exception]] = {}
        self._probed: dict[tuple[str, str], bool] = {}
        self._met: set[tuple[str, str]] = set()
        self._worked: set[str] = set()
        self.guilty: list[Guilty] = []

    async def apply(self, agent: Agent, messages: Sequence[Message[Any]]) -> None:
        """Call the handler until every message is applied, guilty or parked."""
        biz_type = agent.event.biz_type
        # What failed before says nothing about what comes.
        density = (self._memory.again if messages[0].attempts else self._memory.first)[biz_type]
        in_pieces = not self._one_by_one and min(density.piece, len(messages)) > 1
        self._reached = None
        if agent.effect is not None and in_pieces and biz_type not in self._memory.row_count_unreliable:
            self._reached = InsertCounter(self._savepoint, agent.effect.table, self._seconds)
        # A handler merges what is of one conversation only within a call.
        left: Sequence[Message[Any]] = sorted(messages, key=attrgetter("key"))
        while left:
            size = 1 if self._one_by_one else density.piece
            piece, left = self._without_blocked(left[:size]), left[size:]
            if piece and (failed := await self._try(agent, piece)) is not None:
                left = [*await self._find(agent, piece, failed), *left]
                density.add(guilty=1)
        density.add(messages=len(messages))

    def check_handlers(self) -> None:
        """HandlerBroken when all messages of a biz_type that were tried for the first time have met the same.

        That one of them worked an hour or a second before the first failure proves nothing, a table can be dropped: it is tried
        again, and undone.
        """
        for (biz_type, code), (enough, error) in self._broken.items():
            # Mended in this moment: then nobody need be charged for what was before.
            mended = self._probed.get((biz_type, code)) is False
            if mended or self._memory.troubles[biz_type, code].is_everybodys(enough):
                _, reason = describe(error)
                raise HandlerBroken(
                    f"every {biz_type} fails with {code}: {reason.replace(f' ({code})', '', 1)}"
                ) from error
        for where in self._met:
            if self._memory.troubles[where].disproved:  # charged: what is met later has to be disproved anew
                del self._memory.troubles[where]

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
            await self._blame(agent, piece[0], failed.error)
        return behind

    def _learn(self, agent: Agent, guess: Guess | None, *, right: bool) -> None:
        """A handler whose rows were no help once is not counted on again."""
        if guess is not None and guess.counted and not right:
            self._memory.row_count_unreliable.add(agent.event.biz_type)
            self._reached = None

    def _without_blocked(self, piece: Sequence[Message[Any]]) -> list[Message[Any]]:
        behind = [one for one in piece if one.key in self._blocked]
        self.guilty += [Guilty(one.outbox_id, one.key, "parked", one.attempts) for one in behind]
        return [one for one in piece if one.key not in self._blocked]

    async def _try(self, agent: Agent, piece: Sequence[Message[Any]]) -> _Failed | None:
        """How it failed, what the handler did being undone; an outage is raised."""
        if len(piece) == 1 and (known := self._memory.known_failures.get(piece[0].outbox_id)) is not None:
            return _Failed(known)
        try:
            await self._savepoint.set()
            if self._reached is not None:
                await self._reached.begin()
            await self._caller.call(agent, piece)
            if self._memory.deferred:
                await self._savepoint.check_constraints()
        except TransactionEnded:
            raise
        except Exception as error:
            lost = self._caller.lost
            verdict = verdict_on(error, lost)
            certain = len(piece) == 1 and (self._one_by_one or piece[0].attempts > 0)
            if lost and certain and verdict is Verdict.WAIT and self._takes_connections(piece[0].outbox_id):
                verdict = Verdict.SLOW
            if verdict is Verdict.SLOW and certain and (lost or isinstance(error, HandlerTimeout)):
                # The savepoint may be gone with the connection: charged in the next try of the run.
                raise MessageExhausted(piece[0].outbox_id, error) from error
            if verdict is Verdict.WAIT or (verdict is Verdict.SLOW and not certain):
                raise
            if self._reached is not None:
                return _Failed(error, await self._reached.undo())
            await self._savepoint.undo()
            return _Failed(error)
        if self._reached is not None:
            self._reached.applied(len(piece))
        for message in piece if self._memory.lost_alone else ():
            self._memory.lost_alone.pop(message.outbox_id, None)
        self._worked.add(agent.event.biz_type)
        self._memory.worked(agent.event.biz_type, piece)
        return None

    async def _works(self, agent: Agent, message: Message[Any], code: str) -> bool:
        """Whether this message, which worked last, however long ago, does not meet this now; what it does is undone.

        A row that is there already is no `code`: the statement fits the database.
        """
        self._reached = None  # it would count these rows
        await self._savepoint.set()
        try:
            await self._caller.call(agent, [message])
        except TransactionEnded:
            raise
        except Exception as error:
            if self._caller.lost or verdict_on(error, connection_lost=False) is not Verdict.ISOLATE:
                raise
            met = meets_everybody(error)
            return met is None or met[0] != code
        else:
            return True
        finally:
            if not self._caller.lost:
                await self._savepoint.undo()

    def _takes_connections(self, outbox_id: int) -> bool:
        """Whether the connection was lost each time while this message was worked alone, and often enough for no accident."""
        lost_alone = self._memory.lost_alone
        lost_alone[outbox_id] += 1
        if lost_alone[outbox_id] < LOST_ALONE:
            return False
        del lost_alone[outbox_id]
        return True

    async def _blame(self, agent: Agent, message: Message[Any], error: Exception) -> None:
        attempts = message.attempts + 1
        status, wait = fate_of(error, attempts, agent)
        blame = Blame.CHARGED
        if (trouble := meets_everybody(error)) is not None:
            blame = await self._meets(agent, message, error, *trouble)
        if blame is Blame.NONE:
            return
        if blame is Blame.DEFERRED:
            # It waits for its next turn as it is.  Waiting here it would hold up others, who may show that they work.
            attempts, status = message.attempts, "retrying"
            wait = jittered(delay(attempts, agent.first_delay, agent.most_delay))
        code, reason = describe(error)
        held = status == "dead" and agent.on_dead == "hold"
        if status != "dead" or held:
            self._blocked.add(message.key)
        guilty = Guilty(message.outbox_id, message.key, status, attempts, code, reason, wait, status != "dead" or held)
        self.guilty.append(guilty)

    async def _meets(self, agent: Agent, message: Message[Any], error: Exception, code: str, enough: int) -> Blame:
        """Note what everybody may meet, and say whether this message is to be charged for it."""
        where = (agent.event.biz_type, code)
        self._met.add(where)
        trouble = self._memory.troubles.setdefault(where, Trouble())
        # What worked before in this transaction keeps what it needed in place until its end: no table it used is dropped.
        trouble.disproved |= agent.event.biz_type in self._worked
        if len(trouble.messages) < enough:
            trouble.messages.add(message.outbox_id)
        if trouble.is_everybodys(enough) and where not in self._probed and (sound := self._memory.sound.get(where[0])):
            self._probed[where] = await self._works(agent, sound, code)
            if self._probed[where] and await self._try(agent, [message]) is None:
                return Blame.NONE  # mended between the two
        trouble.disproved |= self._probed.get(where, False)
        if message.attempts == 0:
            self._broken.setdefault(where, (enough, error))
        elif trouble.is_everybodys(enough):
            return Blame.DEFERRED
        return Blame.CHARGED


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
    cause = decisive(error)
    if isinstance(cause, MessageError):
        named = getattr(cause, "outbox_id", None)
        names = {named} if isinstance(named, int) else set()
    else:
        diag: Any = getattr(cause, "diag", None)
        names = {int(found) for found in _NUMBER.findall(str(getattr(diag, "message_detail", None) or ""))}
    found = [place for place, message in enumerate(piece) if message.outbox_id in names]
    return found[0] if len(found) == 1 else None
