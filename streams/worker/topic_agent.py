"""One Faust agent a topic: what is delivered is worked in a lane, and acked after the commit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import faust
import psycopg
from sqlalchemy.exc import SQLAlchemyError

from streams.message_id import name_of
from streams.settings import RETRY_SUFFIX
from streams.worker.delivery import by_reason
from streams.worker.driver.dispatcher import Dispatcher, Slots
from streams.worker.driver.runs import Run
from streams.worker.fail import fail_stop
from streams.worker.figures import WorkerFigures
from streams.worker.group_entry import GroupEntry
from streams.worker.retries.schedule import Schedule, noted
from streams.worker.retries.tables import AsideTables
from streams.worker.run.attempt import Outcome
from streams.worker.run.crash_guard import Job, PersistRun, WakeConversations, count_crashes
from streams.worker.run.persister import Persister
from streams.worker.set_aside import SetAside

logger = logging.getLogger(__name__)


class TopicAgent:
    """The body of a topic's agent, over its source topic and its retry topic."""

    def __init__(
        self,
        app: faust.App,
        topic: str,
        tables: AsideTables,
        persister: Persister,
        schedule: Schedule,
        slots: Slots,
        most: int,
        figures: WorkerFigures,
        entry: GroupEntry,
    ) -> None:
        self._app, self._topic, self._tables, self._persister = app, topic, tables, persister
        self._schedule, self._slots, self._most = schedule, slots, most
        self._figures, self._entry = figures, entry

    async def __call__(self, stream: Any) -> None:
        """Work what the stream delivers until it ends."""
        # Faust acks in a finally block, even after an exception: acks are off, each run is acked by
        # hand.
        transport: Any = self._app.consumer
        lanes = Dispatcher(
            self._work, self._slots, self._most, transport.on_buffer_full, transport.on_buffer_drop
        )
        try:
            async with lanes:
                async for event in stream.noack().events():
                    run: Run = event.value
                    run.taken = True
                    alone = run.suspect or run.topic != self._topic
                    lanes.submit(run.partition, event.message.tp, event, run.weight, alone=alone)
        finally:
            if self._app.should_stop:
                # Every handler has ended: what nobody suspects is handed on in order.
                both = {self._topic, self._topic + RETRY_SUFFIX}
                await asyncio.shield(self._persister.suspects.give_up_all(both))

    async def _work(self, events: Sequence[Any]) -> bool:
        """One transaction for these runs; False when it failed and each needs one of its own."""
        runs: list[Run] = [event.value for event in events]
        first = runs[0]
        async with self._persister.suspects.busy([run.suspicion for run in runs]):
            try:
                await self._entry.confirmed()
                for run in runs:
                    if run.topic == self._topic and not await self._persister.note_deleted(run):
                        return len(runs) == 1
                if len(runs) > 1:
                    outcome = await self._persister.together(runs)
                    if outcome is None:
                        return False
                    keys = set(outcome.woken)
                else:
                    job = self._job(first)
                    outcome = await count_crashes(self._persister, job)
                    if outcome is None:
                        return True
                    keys = outcome.woken | {
                        (first.partition, key) for key in getattr(job, "keys", ())
                    }
                await self._note(events, outcome, keys)
                for event in events:
                    event.ack()
                _report(self._topic, self._persister.origin(self._topic).source, outcome)
                self._app.monitor.count("consumed", outcome.consumed)
                self._count(runs, outcome)
            except (asyncio.CancelledError, GeneratorExit):
                raise
            except BaseException:  # foreseen is only what the persister waits out
                # An orderly shutdown would commit offsets and could hang: the run is not acked, it
                # will be delivered again.
                where = {"topic": first.topic, "partition": first.partition, "offset": first.first}
                fail_stop("a run failed for an unexpected reason, the process stops", **where)
        return True

    def _count(self, runs: Sequence[Run], outcome: Outcome) -> None:
        self._figures.committed(outcome)
        for run in runs:
            if run.topic == self._topic:
                self._figures.worked(run.topic, run.partition, run.records[-1].timestamp)

    def _job(self, run: Run) -> Job:
        if run.topic == self._topic:
            return PersistRun(self._persister, run)
        return WakeConversations(self._persister, self._topic, run)

    async def _note(
        self, events: Sequence[Any], outcome: Outcome, keys: set[tuple[int, str]]
    ) -> None:
        """Bring schedule and tables up to what was committed.

        What fails here is made up for by the next comparison.
        """
        retrying = {
            (fate.partition, fate.key): fate
            for fate in outcome.set_aside
            if fate.status == "retrying"
        }
        dead = [fate for fate in outcome.set_aside if fate.status == "dead"]
        if not (keys or retrying or dead):
            return
        try:
            heads = (
                await self._persister.heads(self._topic, [key for _, key in keys]) if keys else []
            )
            shown = self._tables.dead_of([key for _, key in keys])
            still = await self._persister.still_dead(self._topic, shown) if shown else set()
        except (psycopg.Error, SQLAlchemyError, OSError) as error:
            logger.warning(
                "tables not updated", extra={"topic": self._topic, "error": type(error).__name__}
            )
            return
        known = {where: head for where, head in retrying.items() if where not in keys}
        known |= {(head.partition, head.key): head for head in heads}
        now = self._persister.database.now()
        noted(self._schedule, known.values(), keys | retrying.keys(), now)
        for event in events:
            if event.value.current:
                self._write(event, known, keys | retrying.keys(), dead, keys, still)

    def _write(
        self,
        event: Any,
        heads: dict[tuple[int, str], SetAside],
        touched: set[tuple[int, str]],
        dead: list[SetAside],
        woken: set[tuple[int, str]],
        still: set[int],
    ) -> None:
        partition = event.value.partition
        mine = {head.key: head for where, head in heads.items() if where[0] == partition}
        self._tables.note_heads(event, [key for where, key in touched if where == partition], mine)
        self._tables.mend_dead(event, [key for where, key in woken if where == partition], still)
        self._tables.note_dead(event, [fate for fate in dead if fate.partition == partition])


def _report(topic: str, source: str, outcome: Outcome) -> None:
    """Log one line for each partition, status and error code, with one message of it.

    Messages parked behind them are counted.
    """
    failed: dict[tuple[int, str, str | None], list[SetAside]] = {}
    for fate in outcome.set_aside:
        if fate.status != "parked":
            failed.setdefault((fate.partition, fate.status, fate.code), []).append(fate)
    for (partition, status, code), fates in failed.items():
        first = fates[0]
        about = {
            "status": status,
            "error_code": code,
            "count": len(fates),
            "attempts": first.attempts,
        }
        about |= {"reason": first.error} if first.error else {}
        where = {
            "topic": topic,
            "partition": partition,
            "outbox_id": name_of(source, first.outbox_id),
        }
        logger.warning("messages set aside", extra={**where, **about})
    if count := sum(fate.status == "parked" for fate in outcome.set_aside):
        logger.info("messages parked behind an open one", extra={"topic": topic, "count": count})
    for (partition, reason), offsets in by_reason(outcome.rejected).items():
        where = {"topic": topic, "partition": partition, "offset": offsets[0], "last": offsets[-1]}
        logger.warning("records rejected", extra={**where, "count": len(offsets), "reason": reason})
