"""A relay: terms as leader of its slot, one after another, standing by in between, until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Coroutine, Iterable
from typing import Any

import psycopg
from confluent_kafka import KafkaException

from streams import kafka
from streams.errors import ServiceUnreachable, StreamsError, UsageError
from streams.registry import Registry
from streams.relay.admission import Admission
from streams.relay.backoff import delay
from streams.relay.cdc import CdcSource, SlotTaken
from streams.relay.checks import check_database, check_log, check_replication
from streams.relay.connector import heartbeats
from streams.relay.debezium import Keeper, SlotFloor
from streams.relay.grave import Grave
from streams.relay.leadership import Leadership, Standby
from streams.relay.poll import PollSource
from streams.relay.publisher import DeliveryFailed, Publisher
from streams.relay.sweep import Sweep
from streams.relay.upkeep import Floor, Upkeep
from streams.relay.wal_floor import WalFloor
from streams.settings import Settings

logger = logging.getLogger("streams.relay")

STANDBY_SECONDS = 1.0
FLUSH_SECONDS = 4.0
# A term that lasted this long was no failed attempt.
GOOD_TERM_SECONDS = 5.0

OUTAGES = (psycopg.Error, KafkaException, DeliveryFailed, ServiceUnreachable, OSError)


class Relay:
    """Publishes what is committed to the outbox; `stop` ends it with everything in flight confirmed.

    `mode` is cdc, poll, or auto: cdc where the server and the role allow it, else poll.
    """

    def __init__(self, settings: Settings, registry: Registry, mode: str) -> None:
        self._settings = settings
        self._mode = mode
        self._registry = registry
        self._stop = asyncio.Event()
        self._careful = False
        self._refused: dict[int, str] = {}
        self._standing_by = False

    def stop(self) -> None:
        """Finish what is in flight, then return from `run`."""
        self._stop.set()

    async def run(self) -> None:
        """Until stopped; outages are waited out.

        Raises UsageError or ServiceUnreachable when it cannot start, UsageError also when the deployment changed since.
        """
        self._mode = await self._choose()
        await self._prepare_topics()
        attempt = 0
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                await self._term()
            except (SlotTaken, Standby):
                attempt = 0
                self._stand_by()
                await self._pause(STANDBY_SECONDS * random.uniform(0.7, 1.3))
            except OUTAGES as error:
                attempt = 1 if time.monotonic() - began > GOOD_TERM_SECONDS else attempt + 1
                self._careful = isinstance(error, DeliveryFailed) and error.refused and not self._known(error)
                _report(error, attempt)
                await self._pause(delay(attempt, self._settings.relay.backoff_limit))

    async def _choose(self) -> str:
        """The mode to run in; UsageError or ServiceUnreachable when it cannot."""
        await asyncio.to_thread(check_database, self._settings)
        if self._mode == "poll":
            return "poll"
        if self._mode == "debezium":
            await asyncio.to_thread(check_log, self._settings)
            await Keeper(self._settings).reach()
            return "debezium"
        try:
            await asyncio.to_thread(check_log, self._settings)
            await check_replication(self._settings)
        except UsageError as error:
            if self._mode != "auto":
                raise
            logger.warning("relay polls", extra={"relay": self._settings.relay.name, "reason": str(error)})
            return "poll"
        return "cdc"

    async def _term(self) -> None:
        """From taking the lead to losing something, or to the order to stop."""
        if self._mode == "debezium":
            await self._keep()
            return
        async with Leadership(self._settings) as leadership, self._source() as source:
            # Nothing was read yet, so nothing is lost if the publication is not what it should be.
            await asyncio.to_thread(check_database, self._settings)
            if self._mode == "cdc":
                await asyncio.to_thread(check_log, self._settings)
            await self._prepare_topics()
            admission = Admission(self._settings, self._refused)
            await admission.learn(self._registry.topics)
            grave = Grave(self._settings)
            async with Publisher(self._settings, admission, grave.bury, careful=self._careful) as publisher:
                self._leads()
                await self._lead(leadership, source, publisher)
                await self._finish(source, publisher)

    async def _keep(self) -> None:
        """A term beside Debezium, which publishes."""
        keeper = Keeper(self._settings)
        async with Leadership(self._settings) as leadership:
            await asyncio.to_thread(check_database, self._settings)
            await asyncio.to_thread(check_log, self._settings)
            await self._prepare_topics()
            await keeper.begin()
            self._leads()
            floor = SlotFloor(self._settings.relay.name)
            await self._together(
                Upkeep(self._settings, self._mode, floor).run(),
                Sweep(self._settings, self._registry).run(),
                leadership.watch(),
                keeper.watch(),
            )
            await keeper.end()
            logger.info("relay stopped", extra={"relay": self._settings.relay.name, "mode": self._mode, "left": 0})

    def _leads(self) -> None:
        self._standing_by = False
        extra = {"relay": self._settings.relay.name, "mode": self._mode, "pid": os.getpid()}
        logger.info("relay leads", extra=extra)

    def _source(self) -> CdcSource | PollSource:
        relay, url, patience = (
            self._settings.relay,
            self._settings.database_url,
            self._settings.database.connect_timeout,
        )
        if self._mode == "poll":
            return PollSource(url, name=relay.name, interval=relay.poll_interval, connect_timeout=patience)
        return CdcSource(url, slot=relay.name, publication=relay.publication, connect_timeout=patience)

    async def _lead(self, leadership: Leadership, source: CdcSource | PollSource, publisher: Publisher) -> None:
        """Publish until told to stop; raises the first thing that went wrong."""
        floor: Floor = source if isinstance(source, PollSource) else WalFloor(lambda: publisher.confirmed)
        upkeep = Upkeep(self._settings, self._mode, floor)
        await self._together(
            _publish(source, publisher),
            _confirm(source, publisher),
            upkeep.run(),
            leadership.watch(),
            Sweep(self._settings, self._registry).run(),
        )

    async def _together(self, *work: Coroutine[Any, Any, Any]) -> None:
        """All of this at once until told to stop; raises the first thing that went wrong."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for each in (*work, self._until_stopped()):
                    tasks.create_task(each)
        except BaseExceptionGroup as group:
            errors = [error for error in _leaves(group) if not isinstance(error, _Stopped)]
            if errors:
                raise errors[0] from None

    async def _finish(self, source: CdcSource | PollSource, publisher: Publisher) -> None:
        """What is in flight arrives and is confirmed, within a few seconds."""
        whole = await publisher.flush(FLUSH_SECONDS)
        source.confirm(publisher.confirmed)
        extra = {"relay": self._settings.relay.name, "mode": self._mode, "left": publisher.in_flight}
        logger.log(logging.INFO if whole else logging.WARNING, "relay stopped", extra=extra)

    async def _prepare_topics(self) -> None:
        await asyncio.to_thread(kafka.prepare_topics, self._settings, self._registry.topics)
        if self._mode == "debezium":
            await asyncio.to_thread(kafka.prepare_topic, self._settings, heartbeats(self._settings), partitions=1)

    async def _until_stopped(self) -> None:
        await self._stop.wait()
        raise _Stopped

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            pass

    def _stand_by(self) -> None:
        if not self._standing_by:
            logger.info("relay stands by", extra={"relay": self._settings.relay.name, "pid": os.getpid()})
        self._standing_by = True

    def _known(self, error: DeliveryFailed) -> bool:
        """Whether the row that was refused is known by now."""
        return self._careful and bool(self._refused)


class _Stopped(Exception):
    pass


async def _publish(source: CdcSource | PollSource, publisher: Publisher) -> None:
    async for rows in source:
        await publisher.publish(rows)


async def _confirm(source: CdcSource | PollSource, publisher: Publisher) -> None:
    """Acknowledgements come in, and confirmations go out, also while reading waits for room."""
    while True:
        publisher.poll()
        source.confirm(publisher.confirmed)
        await asyncio.sleep(0.01 if publisher.in_flight else 0.05)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterable[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _report(error: BaseException, attempt: int) -> None:
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    extra = {"attempt": attempt, "error": text}
    if isinstance(error, psycopg.Error):
        extra["sqlstate"] = error.sqlstate or ""
    if isinstance(error, StreamsError):
        extra["kind"] = type(error).__name__
    logger.warning("relay interrupted", extra=extra)
