"""What a run asks for, as a whole or one piece at a time, so that a death costs one message.

A message that takes its process down costs one message. While a partition is suspect its runs are
noted before handlers get them, and after two noted deaths its messages are tried one at a time
(suspicion.py says how long).
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine, Iterable
from functools import partial
from typing import Any, Protocol

from streams.worker.driver.runs import Run
from streams.worker.driver.suspicion import Suspicion
from streams.worker.failure.strategy import Strategy
from streams.worker.run.attempt import Outcome
from streams.worker.run.persister import Persister
from streams.worker.run.suspects import Isolated, Suspects

logger = logging.getLogger(__name__)


Working = Coroutine[Any, Any, Outcome | None]  # None when the run stopped being ours


class Job(Protocol):
    """One run, and what to do with it.

    `topic` is that of its messages, `most` how many of them are tried alone at most.
    """

    run: Run
    topic: str
    most: int

    def work(self, strategy: Strategy) -> Working:
        """Work it until it is done."""

    def pieces(self, first: int) -> Iterable[Job]:
        """The job, one message at a time from the record with offset `first` on."""


class PersistRun:
    """The records of a source topic."""

    def __init__(self, persister: Persister, run: Run) -> None:
        self._persister, self.run, self.topic, self.most = persister, run, run.topic, 1

    def work(self, strategy: Strategy) -> Working:
        """One transaction for all of them."""
        return self._persister.persist(self.run, strategy)

    def pieces(self, first: int) -> Iterable[Job]:
        """One record each, but for those before `first`, which call no handler."""
        return [PersistRun(self._persister, piece) for piece in self.run.pieces(first)]


class WakeConversations:
    """Wake-up calls from a retry topic: conversations of its source topic with something due."""

    def __init__(self, persister: Persister, topic: str, run: Run, *, alone: bool = False) -> None:
        self._persister, self.topic, self.run, self._alone = persister, topic, run, alone
        self.most = persister.most
        # Anything may stand on a topic; what names no conversation wakes nobody.
        named = (
            record.key.decode("utf-8", "replace")
            for record in run.records
            if record.key is not None
        )
        self.keys = list(dict.fromkeys(key for key in named if "\0" not in key))

    def work(self, strategy: Strategy) -> Working:
        """One transaction with what is due of each, or with the next message alone."""
        return self._persister.retry(
            self.run, self.topic, self.keys, strategy, 1 if self._alone else None
        )

    def pieces(self, first: int) -> Iterable[Job]:
        """One conversation each, its due messages one after another."""
        return [
            WakeConversations(self._persister, self.topic, piece, alone=True)
            for piece in self.run.pieces()
        ]


async def count_crashes(persister: Persister, job: Job) -> Outcome | None:
    """The job's outcome; while its partition is suspect, noted before a handler is called."""
    run, suspicion, suspects = job.run, job.run.suspicion, persister.suspects
    if suspicion is None or not run.suspect:
        return await job.work(Strategy.WHOLE)
    if not await persister.insist(run, partial(suspects.take, suspicion)):
        return None
    if suspicion.over:
        return await job.work(Strategy.WHOLE)
    try:
        async with suspects.trying(run, job.topic, suspicion) as trial:
            outcome = await job.work(Strategy.WHOLE)
        first = trial.first
    except Isolated as isolated:
        outcome, first = await _one_by_one(suspects, job, suspicion, isolated.first)
    if outcome is not None:
        before = suspicion.strikes
        suspicion.done(run, first)
        if suspicion.strikes != before:
            note = partial(
                suspects.notes.put, suspicion.owner, suspicion.place, suspicion.strikes, run.end
            )
            await persister.insist(run, note)
    return outcome


Tried = tuple[
    Outcome | None, int | None
]  # the outcome, and the offset of the first record that a handler got


async def _one_by_one(suspects: Suspects, job: Job, suspicion: Suspicion, first: int) -> Tried:
    """Work the records from offset `first` on one at a time: a handler would get them."""
    about = {"topic": job.run.topic, "partition": job.run.partition, "offset": first}
    logger.error(
        "messages of a run took their process down, they are tried one by one", extra=about
    )
    total, called = Outcome(), None
    for piece in job.pieces(first):
        outcome, called_now = await _piece(suspects, piece, suspicion)
        if outcome is None or not job.run.current:
            return None, None
        total.add(outcome)
        called = called_now if called is None else called
    return total, called


async def _piece(suspects: Suspects, piece: Job, suspicion: Suspicion) -> Tried:
    """Work a piece: as a whole if no handler would be called, or one record alone.

    A record alone is tried again and again.
    """
    if len(piece.run) > 1:
        try:
            return await _tried(suspects, piece, suspicion, Strategy.WHOLE)
        except Isolated as isolated:
            return await _one_by_one(suspects, piece, suspicion, isolated.first)
    total, called = Outcome(), None
    for _ in range(piece.most):
        outcome, called_now = await _tried(suspects, piece, suspicion, Strategy.SINGLE)
        if outcome is None:
            return None, None
        total.add(outcome)
        called = called_now if called is None else called
        if not (outcome.consumed or outcome.set_aside):
            break
    return total, called


async def _tried(suspects: Suspects, job: Job, suspicion: Suspicion, strategy: Strategy) -> Tried:
    alone = strategy is Strategy.SINGLE
    async with suspects.trying(job.run, job.topic, suspicion, alone=alone) as trial:
        outcome = await job.work(strategy)
    return outcome, trial.first
