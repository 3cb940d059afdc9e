"""One attempt at a run: what it works with, and what it has decided so far."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from sqlalchemy.ext.asyncio import AsyncConnection

from streams.figures.counters import RunTally
from streams.registry import Agent, Registry
from streams.settings import Settings
from streams.worker.delivery import Delivery, Rejected, messages_of
from streams.worker.failure.handler_call import HandlerCaller
from streams.worker.failure.history import FailureHistory
from streams.worker.failure.savepoint import Savepoint
from streams.worker.failure.strategy import Strategy
from streams.worker.run.decide import TERMINAL
from streams.worker.run.foreign import Foreign
from streams.worker.run.origin import Origin, Outbox
from streams.worker.run.spans import RunSpans
from streams.worker.run.suspects import Trial
from streams.worker.run.transaction import Transaction
from streams.worker.set_aside import SetAside

DAY = 86_400  # seconds


@dataclass(slots=True)
class Outcome:
    """What a transaction decided, true once it committed.

    consumed     how many messages were persisted
    skipped      how many records had their fate already, or have to wait for their time
    set_aside    messages that failed, cannot be read or wait behind another one
    rejected     records that are no message's
    woken        (partition, conversation) that may have a next message to work
    tally        the same by biz_type, for figures
    """

    consumed: int = 0
    skipped: int = 0
    set_aside: list[SetAside] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    woken: set[tuple[int, str]] = field(default_factory=set)
    tally: RunTally = field(default_factory=RunTally)

    def add(self, other: Outcome) -> None:
        """Count another one in."""
        self.consumed += other.consumed
        self.skipped += other.skipped
        self.set_aside += other.set_aside
        self.rejected += other.rejected
        self.woken |= other.woken
        self.tally.add(other.tally)

    def count_aside(self, line: Iterable[tuple[Delivery, SetAside]]) -> None:
        """Count what was set aside."""
        for delivery, fate in line:
            self.tally.aside(delivery.biz_type, fate.status)

    def count_persisted(
        self, by_type: Iterable[tuple[str, Sequence[Delivery]]], but: Collection[int]
    ) -> None:
        """Count those of each biz_type that were persisted, with when they were enqueued.

        That is all but these messages.
        """
        for biz_type, batch in by_type:
            kept = batch
            if but:
                kept = [delivery for delivery in batch if delivery.outbox_id not in but]
            if kept:
                times = [message.created_ms for message in messages_of(kept)]
                self.tally.consumed(biz_type, times)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt, in one transaction.

    transaction        the statements
    caller             calls handlers in the same transaction
    savepoint          undoes what a handler did, where handlers get pieces of the run
    agents             the handler of each biz_type
    history            what earlier failures have taught
    strategy           whether handlers get the run as a whole
    unknown_seconds    how long a message waits for a worker that knows its biz_type
    trial              what is noted before a handler is called, where the partition is suspect
    spans              what is told to OpenTelemetry
    outcome            what was decided
    """

    transaction: Transaction
    caller: HandlerCaller
    savepoint: Savepoint
    agents: Mapping[str, Agent]
    history: FailureHistory
    strategy: Strategy
    unknown_seconds: float
    trial: Trial | None
    spans: RunSpans
    outcome: Outcome

    async def reading(self, records: Sequence[Any]) -> Mapping[int, Exception]:
        """Note that the payloads of these records are about to be read, where that may be deadly.

        Returns what may not be read any more, and why, by outbox id.
        """
        origin, known = self.transaction.origin, self.history.known_failures
        if self.trial is None or not origin.runs_code:
            return {}
        condemned = await self.trial.read(origin.ids(records), self._unsettled, known)
        return {outbox_id: known[outbox_id] for outbox_id in condemned}

    async def _unsettled(self, ids: Collection[int]) -> set[int]:
        facts = await self.transaction.facts(ids)
        settled = {outbox_id for outbox_id, fact in facts.items() if fact.status in TERMINAL}
        return set(ids) - settled

    async def loading(self, ids: Collection[int], offset: int) -> Collection[int]:
        """Note that these messages are about to be loaded from what is stored of them.

        Returns those that must not be: their process died of it too often. `offset` is that of
        their first record, where they came by one.
        """
        if self.trial is None or not ids:
            return ()
        return await self.trial.load(
            ids,
            offset,
            self.history.known_failures,
            deadly=self.transaction.origin.runs_code,
        )

    async def settle(self) -> None:
        """Before the commit: forget what was stored of settled messages.

        What was noted is taken back too.
        """
        await self.transaction.settle()
        if self.trial is not None:
            await self.trial.settle(self.transaction.execute)


class Attempts:
    """What all attempts of a process share.

    They share agents, whose messages a topic carries, and what failures have taught.
    """

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self._agents, self._unknown_seconds = registry.agents, settings.worker.unknown_days * DAY
        self._ours = Outbox(registry)
        self._foreign = {
            topic: Foreign(registry, source) for topic, source in registry.envelopes.items()
        }
        self._histories: defaultdict[str, FailureHistory] = defaultdict(FailureHistory)

    def origin(self, topic: str) -> Origin:
        """Whose messages the topic carries."""
        return self._foreign.get(topic, self._ours)

    def history(self, topic: str) -> FailureHistory:
        """What failures of messages from there have taught."""
        return self._histories[self.origin(topic).source]

    def strategy(self, topic: str) -> Strategy:
        """The strategy to begin with: savepoints where messages failed a short while ago.

        They are used until failures are so rare that whole runs are cheaper.
        """
        return Strategy.BISECT if self.history(topic).recently_failing(topic) else Strategy.WHOLE

    def begin(
        self,
        connection: AsyncConnection,
        driver: psycopg.AsyncConnection[Any],
        topic: str,
        strategy: Strategy,
        *,
        seconds: float,
        progressed: Callable[[], None] = lambda: None,
        trial: Trial | None = None,
    ) -> Attempt:
        """An attempt on this connection.

        Each statement and each call of a handler may take so many seconds.

        `progressed` is called whenever a handler has ended.
        """
        outcome = Outcome()
        return Attempt(
            Transaction(driver, topic, self.origin(topic), seconds),
            HandlerCaller(connection, driver, seconds, progressed),
            Savepoint(driver, seconds),
            self._agents,
            self.history(topic),
            strategy,
            self._unknown_seconds,
            trial,
            RunSpans(topic, outcome.set_aside),
            outcome,
        )
