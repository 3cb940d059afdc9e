"""What a worker tells of itself every few seconds: counts, a sign of life, how far it is.

On a connection of the worker's pool, beside the transactions of runs and never inside one. Nobody
waits for it: when the database is away, or this role may not write these tables, messages are
worked all the same.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
import psycopg
from sqlalchemy.exc import SQLAlchemyError

from streams.database import query
from streams.database.refusals import lasting, sqlstate
from streams.figures import histogram
from streams.figures.counters import Counters
from streams.figures.process import BEAT_SECONDS, Vitals, beat_seconds, incarnation
from streams.worker.database.database import Asked, Database
from streams.worker.run.attempt import Outcome

logger = logging.getLogger(__name__)

JITTER = 0.8
REFUSED_SECONDS = 60.0
LATEST = 253_402_300_799_999  # the end of the year 9999, in milliseconds since 1970
GOODBYE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """How far a worker is in one partition.

    `worked` is the time of the last record it persisted, in epoch seconds.
    """

    topic: str
    partition: int
    topic_id: str | None
    committed: int | None
    end: int | None
    worked: float | None

    def row(self) -> dict[str, Any]:
        """As `lag_note` takes it."""
        worked = None if self.worked is None else datetime.fromtimestamp(self.worked, UTC)
        return {
            "topic": self.topic,
            "partition": self.partition,
            "topic_id": self.topic_id,
            "committed": self.committed,
            "end_offset": self.end,
            "log_start": None,
            "worked": worked,
        }


class WorkerFigures:
    """Counts what transactions decided, and tells about it until it is stopped."""

    def __init__(self, database: Database, group: str, biz_types: Collection[str]) -> None:
        self.counters = Counters(biz_types)
        self._database, self._group = database, group
        self._worked: dict[tuple[str, int], float] = {}
        self._refused = False
        # When counts are sent again that were refused: the sign of life does not wait for them.
        self._counts_from = 0.0

    def committed(self, outcome: Outcome) -> None:
        """A transaction has committed."""
        self.counters.count(outcome.tally, self._database.now(), outcome.skipped)

    def worked(self, topic: str, partition: int, time_ms: int | None) -> None:
        """Records of this partition were worked; the last one has this time."""
        if time_ms is not None and time_ms >= 0:
            # A producer may give microseconds: a time that no database takes.
            self._worked[topic, partition] = min(time_ms, LATEST) / 1000

    def worked_at(self, topic: str, partition: int) -> float | None:
        """The time of the last record worked here, in epoch seconds."""
        return self._worked.get((topic, partition))

    async def run(
        self, vitals: Callable[[], Vitals], lags: Callable[[], list[PartitionLag]]
    ) -> None:
        """Tell, again and again, until cancelled."""
        while True:
            pause = BEAT_SECONDS
            counts = time.monotonic() >= self._counts_from
            try:
                pause = await self._tell(vitals(), lags(), counts=counts)
                self._refused = self._refused and not counts
            except Exception as error:  # whatever it is: nobody's message waits because of it
                pause = self._report(error, counts=counts)
            await asyncio.sleep(pause * random.uniform(JITTER, 1.0))

    async def end(self) -> None:
        """What was counted last, and that this process ends in order; as far as there is time."""
        try:
            async with asyncio.timeout(GOODBYE_SECONDS):
                await self._database.tell(
                    [self._flush(), (query("process_end"), {"id": incarnation()})]
                )
        except (psycopg.Error, SQLAlchemyError, OSError, TimeoutError):
            logger.debug("figures not flushed")

    async def _tell(
        self, vitals: Vitals, lags: list[PartitionLag], *, counts: bool = True
    ) -> float:
        statements: list[Asked] = [(query("process_beat"), vitals.parameters())]
        if lags:
            rows = orjson.dumps([lag.row() for lag in lags]).decode()
            statements.append((query("lag_note"), {"group": self._group, "rows": rows, "age": 0.0}))
        if counts:
            statements.append(self._flush())
        answers = await self._database.tell(statements)
        [(processes,)] = answers[0]
        if counts:
            [(current, _, _)] = answers[-1]
            self.counters.answered(current)
        return beat_seconds(processes)

    def _flush(self) -> Asked:
        bucket, rows = self.counters.open()
        parameters = {
            "bucket": bucket,
            "process": incarnation(),
            "projection": "main",
            "rows": orjson.dumps(rows).decode(),
            "bounds": histogram.VERSION,
        }
        return query("figures_flush"), parameters

    def _report(self, error: Exception, *, counts: bool) -> float:
        """Log what was refused once; of a database that is away those tell who wait for it.

        It returns the seconds to wait: none before the sign of life is tried without the `counts`.
        """
        outage = isinstance(error, psycopg.Error | SQLAlchemyError | OSError | TimeoutError)
        if outage and not lasting(error):
            return BEAT_SECONDS
        if not self._refused:
            about = {"error": type(error).__name__, "sqlstate": sqlstate(error)}
            logger.warning("figures not written, messages are worked all the same", extra=about)
        self._refused = True
        self._counts_from = time.monotonic() + REFUSED_SECONDS
        return 0.0 if counts else REFUSED_SECONDS
