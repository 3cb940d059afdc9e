"""Whether this worker is alive and ready: agents, partitions, database, runs that move."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import faust
from faust.exceptions import ConsumerNotStarted

from streams.worker.database.database import Database
from streams.worker.driver.stall import StallDetector
from streams.worker.fail import fail_stop

logger = logging.getLogger(__name__)

BEAT = 1.0  # seconds between two heartbeats
STDERR = 2
PROCESSORS = os.cpu_count() or 1
LEAST_PATIENCE = 60.0  # seconds: a pool, a lock and a connection have limits of their own
STALE = 10.0  # seconds without a heartbeat after which the worker is not alive


@dataclass(frozen=True, slots=True)
class Readiness:
    """The answer to /health/ready: `reasons` is empty exactly when the worker is ready."""

    partitions: dict[str, list[int]] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    heartbeat_age: float = 0.0
    positions: dict[str, Any] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        """Whether the worker consumes, or stands by for partitions to consume."""
        return not self.reasons


class WorkerHealth:
    """Beats once a second in the worker's own event loop, and only while every agent is running.

    When the loop stands still for `patience` seconds, the process stops. `change` says what is not
    as it was in Kafka.
    """

    def __init__(
        self,
        app: faust.App,
        database: Database,
        topics: Sequence[str],
        patience: float,
        change: Callable[[], str | None] = lambda: None,
    ) -> None:
        # Faust's interface types lack what its classes have.
        self._app: Any = app
        self._database, self._topics = database, topics
        self._beat = time.monotonic()
        self._reachable = False
        self._watch = StallDetector(
            max(LEAST_PATIENCE, 3 * database.patience), self._app.conf.broker_commit_interval
        )
        self._turns = 0
        self._patience = patience
        self._change = change
        app.task(self._run)
        app.on_partitions_assigned.connect(self._assigned)

    @property
    def age(self) -> float:
        """Seconds since the last heartbeat."""
        return time.monotonic() - self._beat

    def readiness(self) -> Readiness:
        """What this worker works on, and why it is not ready if it is not."""
        reasons = []
        if self._app.rebalancing or not self._app.tables.recovery.completed.is_set():
            reasons.append("a rebalance is under way")
        elif not self._app.consumer.in_touch():
            reasons.append("Kafka does not answer")
        if change := self._change():
            reasons.append(change)
        if not self._reachable:
            reasons.append("the database does not answer")
        if self.age > STALE:
            reasons.append(f"no heartbeat for {self.age:.0f} s")
        return Readiness(self._partitions(), reasons, round(self.age, 1), self._positions())

    def has_lost(self, brokers: Collection[str]) -> bool:
        """Whether Faust's consumer has lost Kafka, and its brokers have moved.

        That is when it knows none of these brokers (`host:port`), which are there.
        """
        with contextlib.suppress(ConsumerNotStarted):
            return self._app._consumer is not None and bool(self._app.consumer.has_lost(brokers))
        return False

    def _partitions(self) -> dict[str, list[int]]:
        # Asked before it has started, Faust's consumer raises.
        with contextlib.suppress(ConsumerNotStarted):
            assigned: Any = (
                self._app.consumer.assignment() if self._app._consumer is not None else ()
            )
            return {
                name: sorted(tp.partition for tp in assigned if tp.topic == name)
                for name in self._topics
            }
        return {name: [] for name in self._topics}

    async def _assigned(self, *_: Any, **__: Any) -> None:
        logger.info("partitions assigned", extra=self._partitions())

    def _positions(self) -> dict[str, Any]:
        with contextlib.suppress(ConsumerNotStarted):
            positions: dict[str, Any] = (
                self._app.consumer.positions() if self._app._consumer is not None else {}
            )
            return positions
        return {}

    async def _run(self) -> None:
        threading.Thread(target=self._watch_loop, name="watchdog", daemon=True).start()
        while not self._app.should_stop:
            self._turns += 1
            self._reachable = await self._database.reachable()
            if all(_running(agent) for agent in self._app.agents.values()):
                self._beat = time.monotonic()
            if not self._app.rebalancing and (stall := self._watch.stall(self._app.consumer)):
                fail_stop("the worker stalls and stops, to be started again", **stall)
            await asyncio.sleep(BEAT)

    def _watch_loop(self) -> None:
        """Watch the event loop, in a thread of its own.

        A handler that blocks the loop blocks everything else that could notice.
        """
        # It says where Python stands, and then the signal does what it does: it ends the process.
        # To the descriptor: what is called stderr here is Faust's, and writes logs.
        faulthandler.register(signal.SIGVTALRM, file=STDERR, chain=True)
        seen, still = -1, 0
        while True:
            # A timer of the kernel's: whoever keeps the interpreter to himself (a regular
            # expression that never ends) keeps this thread out as well. It counts the time of all
            # processors, which threads outside of the interpreter may use at once: they are busy,
            # and a process that was stopped is not.
            signal.setitimer(signal.ITIMER_VIRTUAL, (self._patience + BEAT) * PROCESSORS)
            time.sleep(BEAT)
            if self._app.should_stop:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
                return
            # Ticks, not time: a process that was stopped and continued has not hung.
            seen, still = (self._turns, 0) if seen != self._turns else (seen, still + 1)
            if still * BEAT > self._patience:
                fail_stop(
                    "the event loop is blocked and the worker stops, to be started again",
                    seconds=still * BEAT,
                )


def _running(agent: Any) -> bool:
    return any(
        actor.actor_task is not None and not actor.actor_task.done() for actor in agent._actors
    )
