"""What a run asks for: persist its records, or work the conversations it wakes; as a whole, or one piece at a time.

A message that takes its process down costs one message.  Only the first run after a partition was assigned can be the one
that did, so only those are noted before they are begun; one that was begun too often is worked piece by piece.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import LiteralString, Protocol

from streams.errors import Reject
from streams.worker.handlers import Care
from streams.worker.ledger import Run
from streams.worker.persister import Persister
from streams.worker.transaction import Outcome

logger = logging.getLogger(__name__)

PATIENCE = 3  # crashes of a run before it is worked piece by piece, and of one piece before its message is dead


class Job(Protocol):
    """One run, and what to do with it; `topic` is that of its messages."""

    run: Run
    topic: str

    async def work(self, care: Care) -> Outcome | None:
        """Do it; None when the run stopped being ours."""

    def pieces(self) -> Iterable[Job]:
        """The same, one message at a time."""

    async def messages(self) -> list[int]:
        """The messages that a piece would hand to a handler."""


class Persist:
    """The records of a source topic."""

    def __init__(self, persister: Persister, run: Run) -> None:
        self._persister, self.run, self.topic = persister, run, run.topic

    async def work(self, care: Care) -> Outcome | None:
        """One transaction for all of them."""
        return await self._persister.persist(self.run, care)

    def pieces(self) -> Iterable[Job]:
        """One record each."""
        return [Persist(self._persister, one) for one in self.run.pieces()]

    async def messages(self) -> list[int]:
        """The roots named in the records."""
        found, _ = self._persister.origin(self.topic).read(self.run.records)
        return [one.outbox_id for one in found]


class Wake:
    """Wake-up calls from a retry topic: conversations of its source topic with something due."""

    def __init__(self, persister: Persister, topic: str, run: Run, most: int | None = None) -> None:
        self._persister, self.topic, self.run, self._most = persister, topic, run, most
        # Anything may stand on a topic; what names no conversation wakes nobody.
        named = (record.key.decode("utf-8", "replace") for record in run.records if record.key is not None)
        self.keys = list(dict.fromkeys(key for key in named if "\0" not in key))

    async def work(self, care: Care) -> Outcome | None:
        """One transaction with what is due of each."""
        return await self._persister.retry(self.run, self.topic, self.keys, care, self._most)

    def pieces(self) -> Iterable[Job]:
        """The head of one conversation each."""
        return [Wake(self._persister, self.topic, one, most=1) for one in self.run.pieces()]

    async def messages(self) -> list[int]:
        """The heads of the conversations."""
        return [head.outbox_id for head in await self._persister.heads(self.topic, self.keys)]


async def guarded(persister: Persister, job: Job) -> Outcome | None:
    """The job's outcome; a suspect's start is noted first, and its end afterwards."""
    run = job.run
    if not run.suspect:
        return await job.work(Care.NONE)
    where = {"topic": run.topic, "partition": run.partition}
    crashes = await persister.note(run, "note_start", **where, offset=run.first)
    if crashes is None:
        return None
    if crashes < PATIENCE:
        async with _ending(persister, run, "forget_start"):
            outcome = await job.work(Care.NONE)
    else:
        logger.error("a run took its process down, it is worked one by one", extra={**where, "crashes": crashes})
        outcome = await _piece_by_piece(persister, job)
    if outcome is not None:
        await persister.note(run, "note_end", **where, end=run.end)
    return outcome


async def _piece_by_piece(persister: Persister, job: Job) -> Outcome | None:
    total = Outcome()
    for piece in job.pieces():
        where = {"topic": piece.run.topic, "partition": piece.run.partition, "offset": piece.run.first}
        crashes = await persister.note(job.run, "note_start_alone", **where)
        if crashes is None:
            return None
        reason = Reject(f"the worker died {crashes} times while it handled this", code="crash")
        condemned = await piece.messages() if crashes >= PATIENCE else []
        with persister.condemning(piece.topic, condemned, reason):
            async with _ending(persister, piece.run, "forget_start_alone"):
                outcome = await piece.work(Care.ONE_BY_ONE)
        if outcome is None or not job.run.current:
            return None
        await persister.note(job.run, "forget_start_alone", **where)
        total.add(outcome)
    return total


@asynccontextmanager
async def _ending(persister: Persister, run: Run, forget: LiteralString) -> AsyncIterator[None]:
    """A run that waits when a rebalance or the end of its process takes it away has taken nobody down."""
    try:
        yield
    finally:
        if run.waiting:
            await persister.database.forget(forget, topic=run.topic, partition=run.partition, offset=run.first)
