"""The partitions of one process that are suspected, and the notes that outlive it.

A note is committed right before a handler is called, on a connection beside the transaction, and
taken back as soon as the try has ended while the process lives: in the transaction that succeeded,
or after the one that failed. So a note that stands was left by a process that died while a handler
had the messages, and waiting costs nobody a strike.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    MutableMapping,
    Sequence,
)
from contextlib import asynccontextmanager
from typing import Any, Protocol

from streams.errors import Reject
from streams.settings import RETRY_SUFFIX
from streams.worker.delivery import Delivery
from streams.worker.driver.runs import Run
from streams.worker.driver.suspicion import ISOLATE, STRIKES, Strikes, Suspicion
from streams.worker.run.exclusion import LEND, Displaced, Exclusion

logger = logging.getLogger(__name__)

Place = tuple[str, int]  # topic and partition
Execute = Callable[..., Awaitable[Any]]  # a named query in the transaction of a try


class Unnoted(Exception):
    """A note could not be written: without it no handler is called."""


class TakenOver(Unnoted):
    """Another owner took the partition in between.

    It is ours again, and the try begins again at once.

    Two consumer groups of one topic take it from each other: whoever waited now would find it taken
    again.
    """


class Isolated(Exception):
    """The run would load messages or call a handler, and they have to be tried alone.

    `first` is the offset of the first of them.
    """

    def __init__(self, first: int) -> None:
        super().__init__("to be worked one message at a time")
        self.first = first


class Notes(Protocol):
    """Where notes are kept; each call is committed by itself, and raises what the store raises."""

    async def take(self, owner: str, places: Sequence[Place]) -> dict[Place, Strikes]:
        """Make these partitions the owner's; what was noted of them before."""

    async def put(self, owner: str, place: Place, strikes: Strikes, offset: int) -> bool:
        """Note these strikes, and the first offset of the run.

        False when the partition is not this owner's any more.
        """

    async def hand_on(self, owned: Sequence[tuple[str, Place]]) -> None:
        """Given up in order, by an owner who did not suspect them."""

    async def strike(self, topic: str, partition: int, ids: Sequence[int]) -> dict[int, int]:
        """One strike more for each of these messages, and how many each had before."""

    async def withdraw(self, topic: str, ids: Sequence[int]) -> None:
        """One strike less."""


class Suspects:
    """Every partition that this process was assigned, and whether it is suspect."""

    def __init__(self, notes: Notes, exclusion: Exclusion, most: int, most_bytes: int) -> None:
        self.notes, self.exclusion = notes, exclusion
        self._most, self._most_bytes = most, most_bytes
        self._current: dict[Place, Suspicion] = {}
        self._taking = asyncio.Lock()
        self.trials: set[Trial] = set()
        self.leaving = False

    def assigned(self, places: Iterable[Place]) -> None:
        """From now on these are suspect, until more is known."""
        for topic, partition in places:
            # Wake-up calls tell nothing of where in the log a message is.
            most = None if topic.endswith(RETRY_SUFFIX) else self._most
            self._current[topic, partition] = Suspicion(topic, partition, most, self._most_bytes)

    def of(self, topic: str, partition: int) -> Suspicion | None:
        """The partition's suspicion since its last assignment."""
        return self._current.get((topic, partition))

    async def take(self, suspicion: Suspicion) -> None:
        """Make this one, and all others that are new, ours, and read what earlier owners noted."""
        async with self._taking:
            if suspicion.taken:
                return
            untaken = {
                place: current for place, current in self._current.items() if not current.taken
            }
            untaken[suspicion.place] = suspicion
            owner = uuid.uuid4().hex
            strikes = await self.notes.take(owner, sorted(untaken))
            for place, each in untaken.items():
                each.take(owner, strikes.get(place, Strikes()))

    def isolated(self, suspicion: Suspicion) -> bool:
        """Whether messages of this partition are to be tried one at a time.

        Those of a topic and of its retries die of the same ones.
        """
        topic, partition = suspicion.place
        other = (
            topic.removesuffix(RETRY_SUFFIX)
            if topic.endswith(RETRY_SUFFIX)
            else topic + RETRY_SUFFIX
        )
        beside = self.of(other, partition)
        return (
            suspicion.strikes.crashes + (beside.strikes.crashes if beside is not None else 0)
            >= ISOLATE
        )

    @asynccontextmanager
    async def trying(
        self, run: Run, topic: str, suspicion: Suspicion, *, alone: bool = False
    ) -> AsyncIterator[Trial]:
        """Within this the run is worked under suspicion.

        `topic` is that of its messages, `alone` if it holds one of them.
        """
        run.trial = trial = Trial(self, suspicion, run, topic, alone=alone)
        self.trials.add(trial)
        try:
            yield trial
        except (Isolated, asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException:  # raised again: the process is going to end, by this run
            await trial.stand()
            raise
        finally:
            self.trials.discard(trial)
            trial.acquit()
            run.trial = None

    @asynccontextmanager
    async def busy(self, suspicions: Iterable[Suspicion | None]) -> AsyncIterator[None]:
        """Runs of these partitions are worked within this.

        One that was given up meanwhile is handed on afterwards.
        """
        worked = {suspicion for suspicion in suspicions if suspicion is not None}
        for suspicion in worked:
            suspicion.busy += 1
        try:
            yield
        finally:
            for suspicion in worked:
                suspicion.busy -= 1
        if given_up := [suspicion for suspicion in worked if suspicion.given_up]:
            await self._hand_on(given_up)

    async def give_up(self, places: Iterable[Place]) -> None:
        """Give up these partitions, which are not ours any more, or will not be in a moment.

        Those that nobody suspects and nobody works are handed on in order.
        """
        given_up = [
            suspicion
            for place in places
            if (suspicion := self._current.pop(place, None)) is not None
        ]
        for suspicion in given_up:
            suspicion.given_up = True
        await self._hand_on(given_up)

    async def give_up_all(self, topics: Collection[str]) -> None:
        """The same for every partition of these topics."""
        await self.give_up([place for place in self._current if place[0] in topics])

    async def leave(self) -> None:
        """The process is told to end: what it stops in the middle has killed nobody."""
        self.leaving = True
        for trial in list(self.trials):
            await trial.withdraw()

    async def _hand_on(self, given_up: Sequence[Suspicion]) -> None:
        owned = [
            (suspicion.owner, suspicion.place)
            for suspicion in given_up
            if suspicion.taken and suspicion.over and not suspicion.busy
        ]
        try:
            if owned:
                await self.notes.hand_on(owned)
        except (
            Exception
        ) as error:  # then its next owner suspects it: no more than a note for each run
            logger.info(
                "partitions are not handed on in order", extra={"error": type(error).__name__}
            )


class Trial:
    """The tries of one run under suspicion; several in turn, when it waits for something."""

    def __init__(
        self, suspects: Suspects, suspicion: Suspicion, run: Run, topic: str, *, alone: bool
    ) -> None:
        self._suspects, self._suspicion, self._run, self._topic = suspects, suspicion, run, topic
        self._alone = alone
        self._probing = not alone and suspects.isolated(suspicion)
        self._permit: Any = None
        self._displaced = 0
        self._noted = False
        self._struck: set[int] = set()
        self._called: set[int] = set()  # those of them that a handler got
        self._struck_last: frozenset[int] = frozenset()
        self._condemned: list[tuple[MutableMapping[int, Exception], int]] = []
        self.first: int | None = (
            None  # offset of the first record that a handler got in the last try
        )

    @asynccontextmanager
    async def permitted(self) -> AsyncIterator[None]:
        """One try: what is noted in it is taken back when it fails, for then its process lives."""
        patience = LEND * 2 ** min(self._displaced, 8)
        async with self._suspects.exclusion.permit(alone=self._alone, patience=patience) as permit:
            self._permit, self.first = permit, None
            self._called.clear()
            try:
                yield
            except BaseException:
                await self.withdraw()
                raise
        self._noted = False
        self._struck.clear()

    async def read(
        self,
        named: Sequence[tuple[int, int]],
        unsettled: Callable[[Collection[int]], Awaitable[Collection[int]]],
        known_failures: MutableMapping[int, Exception],
    ) -> Collection[int]:
        """Note that the payloads of these (id, offset) are about to be read, as `begin` does.

        Their types run code of their own, by which the process may end as by a handler. Returns
        those that took it down too often: they are not read. `unsettled` says which of them have
        no fate yet.
        """
        if self._suspects.leaving:
            raise Unnoted("the process ends")
        if not named:
            return ()
        if self._probing:
            left = await unsettled({outbox_id for outbox_id, _ in named})
            if offsets := [offset for outbox_id, offset in named if outbox_id in left]:
                raise Isolated(min(offsets))
            return ()
        self._claim_permit()
        if self._alone:
            ids = sorted({outbox_id for outbox_id, _ in named})
            await self._noting(self._strike(ids, known_failures))
            return self._condemned_ids() & set(ids)
        if not self._noted:
            await self._noting(self._note())
        return ()

    async def load(
        self,
        ids: Collection[int],
        offset: int,
        known_failures: MutableMapping[int, Exception],
        *,
        deadly: bool,
    ) -> Collection[int]:
        """Note that these are about to be loaded: the process may end by that as by a handler.

        Returns those that took it down too often: they are not loaded, and fail without a call.
        """
        if self._suspects.leaving:
            raise Unnoted("the process ends")
        if self._probing:
            raise Isolated(offset)
        if not self._alone:
            # The try notes itself, when it fails for no reason that was foreseen.
            if deadly and not self._noted:
                self._claim_permit()
                await self._noting(self._note())
            return ()
        self._claim_permit()
        await self._noting(self._strike(sorted(ids), known_failures))
        return self._condemned_ids() & set(ids)

    async def begin(
        self, deliveries: Sequence[Delivery], known_failures: MutableMapping[int, Exception]
    ) -> None:
        """Note that handlers are about to get these.

        Those that took their process down too often fail without a call.
        """
        if self._suspects.leaving:
            raise Unnoted("the process ends")
        first = min(delivery.offset for delivery in deliveries)
        if self._probing:
            raise Isolated(first)
        self._claim_permit()
        self.first = first if self.first is None else min(first, self.first)
        if self._alone:
            ids = [delivery.outbox_id for delivery in deliveries]
            await self._noting(self._strike(ids, known_failures))
        elif not self._noted:
            await self._noting(self._note())
        # Told to end in that moment: nobody has taken this note back yet.
        if self._suspects.leaving:
            raise Unnoted("the process ends")
        if self._alone:
            self._called.update(ids)

    async def settle(self, execute: Execute) -> None:
        """Before the commit of a try that went well: it takes its notes with it."""
        suspicion = self._suspicion
        through = self._struck & (self._called | self._condemned_ids())
        if through:
            await execute("forget_strikes", ids=sorted(through))
        if loaded := self._struck - through:  # and no more: it waits, and may kill the next time
            await execute("withdraw_strikes", ids=sorted(loaded))
        if self._noted:
            strikes = suspicion.after(self._run)
            await execute(
                "put_strikes",
                **parameters(suspicion.owner, suspicion.place, strikes, self._run.first),
            )

    async def withdraw(self) -> None:
        """Take back what was noted.

        What cannot be stays, and the next try of this process does not note it again.
        """
        suspicion, notes = self._suspicion, self._suspects.notes
        try:
            if self._noted:
                await asyncio.shield(
                    notes.put(suspicion.owner, suspicion.place, suspicion.strikes, self._run.first)
                )
                self._noted = False
            if self._struck:
                await asyncio.shield(notes.withdraw(self._topic, sorted(self._struck)))
                self._struck.clear()
        except Exception as error:
            logger.info(
                "a note is not taken back",
                extra={"topic": self._topic, "error": type(error).__name__},
            )

    def acquit(self) -> None:
        """The run is done, or not ours any more."""
        for known_failures, outbox_id in self._condemned:
            known_failures.pop(outbox_id, None)

    async def stand(self) -> None:
        """Let what was noted stand: the process is about to end because of this run.

        It ends by itself, and that is a death like any other.
        """
        try:
            if self._alone:
                if self._struck_last:
                    await self._suspects.notes.strike(
                        self._topic, self._run.partition, sorted(self._struck_last)
                    )
            else:
                await self._note()
        except Exception as error:
            logger.warning(
                "a death is not noted", extra={"topic": self._topic, "error": type(error).__name__}
            )

    def _condemned_ids(self) -> set[int]:
        return {outbox_id for _, outbox_id in self._condemned}

    def _claim_permit(self) -> None:
        try:
            self._permit.claim()
        except Displaced:
            self._displaced += 1
            raise

    async def _noting(self, note: Awaitable[None]) -> None:
        try:
            await note
        except Unnoted:
            raise
        except Exception as error:
            raise Unnoted("the database takes no note") from error

    async def _note(self) -> None:
        """Note that the run is tried; TakenOver when that has to begin again.

        Where another owner has the partition it is taken again, and as long as nothing was noted
        meanwhile, this goes on: its transaction holds the partition's lock. Two consumer groups
        that gave the lock up here took the partition from each other in turns, for ever.
        """
        suspicion = self._suspicion
        for _ in range(2):
            before = suspicion.strikes
            if await self._suspects.notes.put(
                suspicion.owner, suspicion.place, before.plus(self._run.end), self._run.first
            ):
                self._noted = True
                return
            suspicion.taken = False  # somebody else's in the meantime, or the row is gone
            await self._suspects.take(suspicion)
            suspicion.over = False
            if suspicion.strikes != before:
                break
        raise TakenOver("the partition was another owner's")

    async def _strike(
        self, ids: Sequence[int], known_failures: MutableMapping[int, Exception]
    ) -> None:
        if new := [outbox_id for outbox_id in ids if outbox_id not in self._struck]:
            before = await self._suspects.notes.strike(self._topic, self._run.partition, new)
            self._struck.update(new)
            self._struck_last = frozenset(self._struck)
            for outbox_id, strikes in before.items():
                if strikes >= STRIKES:
                    known_failures[outbox_id] = Reject(
                        f"the worker died {strikes} times while it handled this", code="crash"
                    )
                    self._condemned.append((known_failures, outbox_id))


def parameters(owner: str, place: Place, strikes: Strikes, offset: int) -> dict[str, Any]:
    """Of the named query `put_strikes`."""
    topic, partition = place
    return {
        "run_topic": topic,
        "partition": partition,
        "owner": owner,
        "crashes": strikes.crashes,
        "through": strikes.through,
        "offset": offset,
    }
