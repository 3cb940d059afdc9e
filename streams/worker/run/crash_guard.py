"""What a run asks for: persist its records, or work the conversations it wakes; as a whole, or one piece at a time.

A message that takes its process down costs one message.  While a partition is suspect its runs are noted before handlers
get them, and after two noted deaths its messages are tried one at a time (suspicion.py says how long).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from typing import Protocol

from streams.worker.driver.runs import Run
from streams.worker.driver.suspicion import Suspicion
from streams.worker.failure.handlers import Strategy
from streams.worker.run.attempts import Persister
from streams.worker.run.suspects import Isolated, Suspects
from streams.worker.run.transaction import Outcome

logger = logging.getLogger(__name__)


class Job(Protocol):
    """One run, and what to do with it; `topic` is that of its messages, `most` how many of them are tried alone at most."""

    run: Run
    topic: str
    most: int

    async def work(self, care: Strategy) -> Outcome | None:
        """Do it; None when the run stopped being ours."""

    def pieces(self, first: int) -> Iterable[Job]:
        """The same, one message at a time from the record with offset `first` on."""


class PersistRun:
    """The records of a source topic."""

    def __init__(self, persister: Persister, run: Run) -> None:
        self._persister, self.run, self.topic, self.most = persister, run, run.topic, 1

    async def work(self, care: Strategy) -> Outcome | None:
        """One transaction for all of them."""
        return await self._persister.persist(self.run, care)

    def pieces(self, first: int) -> Iterable[Job]:
        """One record each, but for those before `first`, which call no handler."""
        return [PersistRun(self._persister, one) for one in self.run.pieces(first)]


class WakeConversations:
    """Wake-up calls from a retry topic: conversations of its source topic with something due."""

    def __init__(self, persister: Persister, topic: str, run: Run, *, alone: bool = False) -> None:
        self._persister, self.topic, self.run, self._alone = persister, topic, run, alone
        self.most = persister.most
        # Anything may stand on a topic; what names no conversation wakes nobody.
        named = (record.key.decode("utf-8", "replace") for record in run.records if record.key is not None)
        self.keys = list(dict.fromkeys(key for key in named if "\0" not in key))

    async def work(self, care: Strategy) -> Outcome | None:
        """One transaction with what is due of each, or with the next message alone."""
        return await self._persister.retry(self.run, self.topic, self.keys, care, 1 if self._alone else None)

    def pieces(self, first: int) -> Iterable[Job]:
        """One conversation each, its due messages one after another."""
        return [WakeConversations(self._persister, self.topic, one, alone=True) for one in self.run.pieces()]


async def count_crashes(persister: Persister, job: Job) -> Outcome | None:
    """The job's outcome; while its partition is suspect, noted before a handler is called."""
    run, suspicion = job.run, job.run.suspicion
    if suspicion is None or not run.suspect:
        return await job.work(Strategy.WHOLE)
    suspects = persister.suspects
    if not await persister.insist(run, partial(suspects.take, suspicion)):
        return None
    if suspicion.over:
        return await job.work(Strategy.WHOLE)
    if suspects.isolated(suspicion):
        outcome, first = await _isolated(suspects, job, suspicion)
    else:
        outcome, first = await _tried(suspects, job, suspicion, Strategy.WHOLE)
    if outcome is not None:
        before = suspicion.strikes
        suspicion.done(run, first)
        if suspicion.strikes != before:
            note = partial(suspects.notes.put, suspicion.owner, suspicion.place, suspicion.strikes, run.end)
            await persister.insist(run, note)
    return outcome


Tried = tuple[Outcome | None, int | None]  # the outcome, and the offset of the first record that a handler got


async def _isolated(suspects: Suspects, job: Job, suspicion: Suspicion) -> Tried:
    """As a whole if no handler would be called, otherwise one message at a time."""
    try:
        return await _tried(suspects, job, suspicion, Strategy.WHOLE)
    except Isolated as isolated:
        first = isolated.first
    about = {"topic": job.run.topic, "partition": job.run.partition, "offset": first}
    logger.error("messages of a run took their process down, they are tried one by one", extra=about)
    total, called = Outcome(), None
    for piece in job.pieces(first):
        outcome, called_now = await _piece(suspects, piece, suspicion)
        if outcome is None or not job.run.current:
            return None, None
        total.add(outcome)
        called = called_now if called is None else called
    return total, called


async def _piece(suspects: Suspects, piece: Job, suspicion: Suspicion) -> Tried:
    if len(piece.run) > 1:
        return await _isolated(suspects, piece, suspicion)
    total, called = Outcome(), None
    for _ in range(piece.most):
        outcome, called_now = await _tried(suspects, piece, suspicion, Strategy.SINGLE)
        if outcome is None:
            return None, None
        total.add(outcome)
        called = called_now if called is None else called
        if not (outcome.consumed or outcome.asides):
            break
    return total, called


async def _tried(suspects: Suspects, job: Job, suspicion: Suspicion, care: Strategy) -> Tried:
    with suspects.trying(job.run, job.topic, suspicion, alone=care is Strategy.SINGLE) as trial:
        try:
            return await job.work(care), trial.first
        except Isolated:
            raise
        except Exception:  # raised again: the process is going to end, by this run
            await trial.stand()
            raise
