"""One Faust agent a topic: every run it delivers is persisted in its partition's lane, and acked after the commit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import faust

from streams.worker.fail import fail_stop
from streams.worker.lanes import Lanes
from streams.worker.ledger import Run
from streams.worker.persister import Persister
from streams.worker.tables import AsideTables
from streams.worker.transaction import Outcome

logger = logging.getLogger(__name__)


def consumer(
    app: faust.App, tables: AsideTables, persister: Persister, slots: asyncio.Semaphore
) -> Callable[[Any], Awaitable[None]]:
    """The body of a topic's agent."""

    async def work(event: Any) -> None:
        run: Run = event.value
        try:
            outcome = await persister.persist(run)
            if outcome is None:
                return
            if outcome.asides and run.current:
                tables.write(event, outcome.asides)
            event.ack()
            _report(run, outcome)
            app.monitor.count("consumed", outcome.consumed)
        except Exception:
            # An orderly shutdown would commit offsets and could hang: the run is not acked, it will be delivered again.
            fail_stop(
                "a run failed for an unexpected reason, the process stops",
                topic=run.topic,
                partition=run.partition,
                offset=run.first,
            )

    async def consume(stream: Any) -> None:
        # Faust acks in a finally block, even after an exception: acks are off, each run is acked by hand.
        transport: Any = app.consumer
        async with Lanes(work, slots, transport.on_buffer_full, transport.on_buffer_drop) as lanes:
            async for event in stream.noack().events():
                event.value.taken = True
                lanes.submit(event.message.tp, event)

    return consume


def _report(run: Run, outcome: Outcome) -> None:
    """One line a message that failed or is dead; those parked behind them are counted."""
    where = {"topic": run.topic, "partition": run.partition}
    for aside in outcome.asides:
        if aside.status != "parked":
            about = {"outbox_id": aside.outbox_id, "status": aside.status, "error_code": aside.code}
            logger.warning("message set aside", extra={**where, **about, "attempts": aside.attempts})
    if parked := sum(aside.status == "parked" for aside in outcome.asides):
        logger.info("messages parked behind an open one", extra={**where, "count": parked})
    for rejected in outcome.rejected:
        logger.warning("record rejected", extra={**where, "offset": rejected.offset, "reason": rejected.reason})
