"""Find the guilty messages of a batch, at a bounded price and with the handler unaware.

Pieces of the batch run behind savepoints, conversation by conversation: what succeeds stays done.
An error that names its message (by `outbox_id`, or by the number of a row the server quotes) is
followed there first, then the number of rows that the call had inserted when it failed; otherwise
the piece is halved. Later messages of a conversation that waits are parked behind it, never
applied past it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, auto
from operator import attrgetter
from typing import Any, NamedTuple
from uuid import UUID

from msgspec import structs

from streams.errors import MessageError
from streams.events import Message
from streams.registry import Agent
from streams.worker.delivery import Delivery, messages_of
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
    sqlstate,
    verdict_on,
)
from streams.worker.failure.handler_call import HandlerCaller
from streams.worker.failure.history import FailureHistory, Trouble
from streams.worker.failure.insert_counter import InsertCounter
from streams.worker.failure.savepoint import Savepoint
from streams.worker.set_aside import SetAside, parked

LOST_ALONE = 3  # connections that one message may lose, worked alone, before it is charged
CONSTRAINTS = "23"  # the class of SQLSTATEs of what breaks a constraint
_UNCHANGING = frozenset(
    {str, bytes, int, float, bool, type(None), date, datetime, time, timedelta, Decimal, UUID}
)
_NUMBER = re.compile(r"\d{1,19}")


class Blame(Enum):
    """What a failure means for its message.

    An attempt, the same attempt later, or nothing, since it is applied after all.
    """

    CHARGED = auto()
    DEFERRED = auto()
    NONE = auto()


class Isolation:
    """One transaction's search for the guilty messages.

    What is `set_aside` and which conversations are `blocked` grows with each batch.
    """

    def __init__(
        self,
        caller: HandlerCaller,
        savepoint: Savepoint,
        history: FailureHistory,
        *,
        one_by_one: bool,
    ) -> None:
        self._caller, self._savepoint, self._history = caller, savepoint, history
        self._one_by_one = one_by_one
        self._trust = True
        self._counter: InsertCounter | None = None
        self._blocked: set[str] = set()
        self._broken: dict[tuple[str, str], tuple[int, Exception]] = {}
        # Whether what worked before works still; None where that cannot be told.
        self._probed: dict[tuple[str, str], bool | None] = {}
        self._met: set[tuple[str, str]] = set()
        self._worked: set[str] = set()
        self.set_aside: list[SetAside] = []

    async def work(
        self, batches: Iterable[tuple[str, Sequence[Delivery]]], agents: Mapping[str, Agent]
    ) -> list[SetAside]:
        """Call each biz_type's handler until every message is applied or set aside; those that are.

        HandlerBroken when it is no message's fault.
        """
        # The fates of an earlier batch of this transaction were written behind its last savepoint.
        self._savepoint.left()
        await self._caller.remember()
        for biz_type, batch in batches:
            await self.apply(agents[biz_type], batch)
        await self._caller.restore()
        self.check_handlers()
        return self.set_aside

    async def apply(self, agent: Agent, batch: Sequence[Delivery]) -> None:
        """Call the handler until every message is applied, guilty or parked."""
        biz_type = agent.event.biz_type
        # What failed before says nothing about what comes.
        rate = (self._history.again if batch[0].attempts else self._history.first)[biz_type]
        in_pieces = not self._one_by_one and min(rate.piece_size, len(batch)) > 1
        self._counter = None
        if (
            agent.effect is not None
            and in_pieces
            and biz_type not in self._history.row_count_unreliable
        ):
            self._counter = InsertCounter(self._savepoint, agent.effect.table)
        # A handler merges what is of one conversation only within a call.
        left: Sequence[Delivery] = sorted(batch, key=attrgetter("key"))
        while left:
            size = 1 if self._one_by_one else rate.piece_size
            piece, left = self._without_blocked(left[:size]), left[size:]
            if piece and (failed := await self._try(agent, piece)) is not None:
                left = [*await self._find(agent, piece, failed), *left]
                rate.add(guilty=1)
        rate.add(messages=len(batch))

    def check_handlers(self) -> None:
        """HandlerBroken when all messages of a biz_type have met the same.

        Only those count that were tried for the first time. That one of them worked an hour or a
        second before the first failure proves nothing, a table can be dropped: it is tried again,
        and undone.
        """
        for (biz_type, code), (enough, error) in self._broken.items():
            # Mended in this moment: then nobody need be charged for what was before.
            mended = self._probed.get((biz_type, code)) is False
            if mended or self._history.troubles[biz_type, code].is_everybodys(enough):
                _, reason = describe(error)
                raise HandlerBroken(
                    f"every {biz_type} fails with {code}: {reason.replace(f' ({code})', '', 1)}"
                ) from error
        for where in self._met:
            if self._history.troubles[
                where
            ].disproved:  # charged: what is met later has to be disproved anew
                del self._history.troubles[where]

    async def _find(
        self, agent: Agent, piece: Sequence[Delivery], failed: _Failed | None
    ) -> list[Delivery]:
        """Blame the first failing message of a piece that failed, and apply those before it.

        Returns those behind it.

        When what is left of the guilty one turns out to be good, it is in the rest: that need not
        fail once more.
        """
        behind: list[Delivery] = []
        guess: Guess | None = None
        while len(piece) > 1:
            guess = failed.guess(piece) if failed is not None and self._trust else None
            if guess is not None and guess.position == 0:
                piece, behind, failed = piece[:1], [*piece[1:], *behind], None
                break
            cut = guess.position if guess is not None else len(piece) // 2
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
            self._history.row_count_unreliable.add(agent.event.biz_type)
            self._counter = None

    def _without_blocked(self, piece: Sequence[Delivery]) -> list[Delivery]:
        self.set_aside += [parked(delivery) for delivery in piece if delivery.key in self._blocked]
        return [delivery for delivery in piece if delivery.key not in self._blocked]

    async def _try(self, agent: Agent, piece: Sequence[Delivery]) -> _Failed | None:
        """How it failed, what the handler did being undone; an outage is raised."""
        if (
            len(piece) == 1
            and (known := self._history.known_failures.get(piece[0].outbox_id)) is not None
        ):
            return _Failed(known)
        try:
            await self._savepoint.set()
            if self._counter is not None:
                await self._counter.begin()
            await self._caller.call(agent, [fresh(message) for message in messages_of(piece)])
            if self._history.deferred:
                await self._savepoint.check_constraints()
        except TransactionEnded:
            raise
        except Exception as error:
            lost = self._caller.lost
            verdict = verdict_on(error, lost)
            certain = len(piece) == 1 and (self._one_by_one or piece[0].attempts > 0)
            if (
                lost
                and certain
                and verdict is Verdict.WAIT
                and self._takes_connections(piece[0].outbox_id)
            ):
                verdict = Verdict.SLOW
            if verdict is Verdict.SLOW and certain and (lost or isinstance(error, HandlerTimeout)):
                # The savepoint may be gone with the connection: charged in the next try of the run.
                raise MessageExhausted(piece[0].outbox_id, error) from error
            if verdict is Verdict.WAIT or (verdict is Verdict.SLOW and not certain):
                raise
            if self._counter is not None:
                return _Failed(error, await self._counter.undo())
            await self._savepoint.undo()
            return _Failed(error)
        if self._counter is not None:
            self._counter.applied(len(piece))
        for delivery in piece if self._history.lost_alone else ():
            self._history.lost_alone.pop(delivery.outbox_id, None)
        self._worked.add(agent.event.biz_type)
        self._history.worked(agent.event.biz_type, messages_of(piece[-1:]))
        return None

    async def _works(self, agent: Agent, message: Message[Any], code: str) -> bool | None:
        """Whether this message, which worked last, however long ago, works still.

        False when it meets `code` now. None when it fails in another way, which proves nothing. It
        is tried under an id that no message has, so that rows of its own id are in nobody's way;
        another row that it left may be, and that proves that it works where the message that met
        `code` did not come as far as this statement. What it does is undone.
        """
        before = self._caller.sent
        self._counter = None  # it would count these rows
        await self._savepoint.set()
        try:
            unused = structs.replace(message, outbox_id=-message.outbox_id)
            await self._caller.call(agent, [fresh(unused)])
            if self._history.deferred:
                await self._savepoint.check_constraints()
        except TransactionEnded:
            raise
        except Exception as error:
            if self._caller.lost or verdict_on(error, connection_lost=False) is not Verdict.ISOLATE:
                raise
            met = meets_everybody(error)
            if met is not None and met[0] == code:
                return False
            # The same statement proves nothing either: what it sets off comes after its own checks.
            last = self._caller.sent.last
            is_new = last is not None and last not in before.texts
            return True if is_new and (sqlstate(error) or "").startswith(CONSTRAINTS) else None
        else:
            return True
        finally:
            if not self._caller.lost:
                await self._savepoint.undo()

    def _takes_connections(self, outbox_id: int) -> bool:
        """Whether this message alone loses its connection, too often for an accident.

        The connection was lost each time while it was worked alone.
        """
        lost_alone = self._history.lost_alone
        lost_alone[outbox_id] += 1
        if lost_alone[outbox_id] < LOST_ALONE:
            return False
        del lost_alone[outbox_id]
        return True

    async def _blame(self, agent: Agent, delivery: Delivery, error: Exception) -> None:
        attempts = delivery.attempts + 1
        status, wait = fate_of(error, attempts, agent)
        blame = Blame.CHARGED
        if (trouble := meets_everybody(error)) is not None:
            blame = await self._meets(agent, delivery, error, *trouble)
        if blame is Blame.NONE:
            return
        if blame is Blame.DEFERRED:
            # It waits for its next turn as it is. Waiting here it would hold up others, who may
            # show that they work.
            attempts, status = delivery.attempts, "retrying"
            wait = jittered(delay(attempts, agent.first_delay, agent.most_delay))
        code, reason = describe(error)
        opened = status != "dead" or agent.on_dead == "hold"
        if opened:
            self._blocked.add(delivery.key)
        where = delivery.outbox_id, delivery.key, delivery.partition
        self.set_aside.append(SetAside(*where, status, attempts, code, reason, wait, open=opened))

    async def _meets(
        self, agent: Agent, delivery: Delivery, error: Exception, code: str, enough: int
    ) -> Blame:
        """Note what everybody may meet, and say whether this message is to be charged for it."""
        where = (agent.event.biz_type, code)
        self._met.add(where)
        trouble = self._history.troubles.setdefault(where, Trouble())
        # What worked before in this transaction keeps what it needed in place until its end: no
        # table it used is dropped.
        trouble.disproved |= agent.event.biz_type in self._worked
        if len(trouble.messages) < enough:
            trouble.messages.add(delivery.outbox_id)
        if (
            trouble.is_everybodys(enough)
            and where not in self._probed
            and (sound := self._history.sound.get(where[0]))
        ):
            self._probed[where] = await self._works(agent, sound, code)
            met = self._probed[where] is False
            if not met and await self._try(agent, [delivery]) is None:
                return Blame.NONE  # mended between the two
        trouble.disproved |= self._probed.get(where) is True
        if delivery.attempts == 0:
            self._broken.setdefault(where, (enough, error))
        elif trouble.is_everybodys(enough):
            return Blame.DEFERRED
        return Blame.CHARGED


def fresh(message: Message[Any]) -> Message[Any]:
    """The message for one more call: what a call did to lists and objects in it is undone too."""
    payload = message.payload
    if all(type(getattr(payload, each.name)) in _UNCHANGING for each in fields(payload)):
        return message
    return structs.replace(message, payload=deepcopy(payload))


class Guess(NamedTuple):
    """Where in a piece the guilty message may be, and whether only the number of rows says so."""

    position: int
    counted: bool


@dataclass(frozen=True, slots=True)
class _Failed:
    """How a call failed, and how many rows it had inserted before, if that is known."""

    error: Exception
    rows: int | None = None

    def guess(self, piece: Sequence[Delivery]) -> Guess | None:
        """The one message that the error names.

        Without a name, it is that of the row which was not inserted any more.
        """
        position = _named(self.error, piece)
        if position is not None:
            return Guess(position, counted=False)
        # Nothing inserted, or everything: it failed elsewhere.
        return (
            Guess(self.rows, counted=True)
            if self.rows is not None and 0 < self.rows < len(piece)
            else None
        )


def _named(error: Exception, piece: Sequence[Delivery]) -> int | None:
    """The position of the one message that this error names, if it names one."""
    cause = decisive(error)
    if isinstance(cause, MessageError):
        named = getattr(cause, "outbox_id", None)
        names = {named} if isinstance(named, int) else set()
    else:
        diag: Any = getattr(cause, "diag", None)
        names = {
            int(number)
            for number in _NUMBER.findall(str(getattr(diag, "message_detail", None) or ""))
        }
    positions = [position for position, delivery in enumerate(piece) if delivery.outbox_id in names]
    return positions[0] if len(positions) == 1 else None
