"""A term as leader: one way of publishing after another, from the moment the lock is held until it is lost or told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

import psycopg
from confluent_kafka import KafkaException

from streams.backoff import delay
from streams.broker import beat, kafka, topics
from streams.broker.topics import Cluster, Survey
from streams.errors import ServiceUnreachable, StreamsError
from streams.registry import Registry
from streams.relay.debezium.config import heartbeats
from streams.relay.debezium.supervisor import ConnectorSupervisor, SlotFloor
from streams.relay.leader.lock import Leadership
from streams.relay.leader.maintenance import Activity, LeaderMaintenance
from streams.relay.leader.monitor import PlanChanged, Watch
from streams.relay.leader.plan import Plan, desired_plan, possible_plan
from streams.relay.leader.slot_recovery import SlotRecovery
from streams.relay.leader.sweep import Sweep
from streams.relay.leader.wal_guard import TAKEN_SECONDS, SlotCare
from streams.relay.postgres.checks import check_database
from streams.relay.postgres.connections import replication_connection
from streams.relay.postgres.slot import SlotBusy, let_fail_over
from streams.relay.postgres.wal_floor import WalFloor
from streams.relay.sink.dead_rows import DeadRows
from streams.relay.sink.limits import RecordLimits
from streams.relay.sink.new_topics import NewTopics
from streams.relay.sink.publisher import DeliveryFailed, Publisher
from streams.relay.source.cdc import CdcSource
from streams.relay.source.poll import PollSource
from streams.settings import Settings
from streams.tasks import Done, together

logger = logging.getLogger("streams.relay")

FLUSH_SECONDS = 4.0
SETTLE_SECONDS = 2.0
# A way that went well for this long was no failed attempt.
GOOD_SECONDS = 5.0
# librdkafka asks for a topic's partitions again every five minutes.
TOPICS_SECONDS = 5.0


class TopicsChanged(StreamsError):
    """A topic or the cluster is another one than before: they have to be prepared anew."""


# What the leader waits out without giving up its lead.
BROKER_OUTAGES = (KafkaException, DeliveryFailed, ServiceUnreachable, TopicsChanged)


class LeaderSession:
    """Runs while it leads; psycopg.Error when the database is lost, UsageError when a person has to change something."""

    def __init__(
        self, settings: Settings, registry: Registry, asked: str, leadership: Leadership, stop: asyncio.Event
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._asked = asked
        self._stop = stop
        self._watch = Watch(settings, asked, leadership)
        self._care = SlotCare(settings, self._watch)
        self._careful = False
        self._refused: dict[int, str] = {}
        self._survey = Survey(settings)

    async def run(self) -> None:
        """Until told to stop, with everything in flight confirmed."""
        found = await self._watch.look()
        want = await desired_plan(self._settings, self._asked, found)
        doing = Activity(found.mode or want.mode, "waiting")
        self._upkeep = LeaderMaintenance(self._settings, self._asked, doing, self._registry.consumed)
        await together(self._upkeep.run(), self._watch.run(), Sweep(self._settings, self._registry).run(), self._ways())

    async def drop_oversized_slot(self) -> None:
        """What a leader does for the database when it cannot even begin to publish: its disk, and room for new rows."""
        await self._upkeep_once()
        found = await self._watch.look()
        await self._care.drop_oversized_slot(found, (await desired_plan(self._settings, self._asked, found)).goal)

    async def _upkeep_once(self) -> None:
        await LeaderMaintenance(self._settings, self._asked, Activity("waiting", "waiting")).make_room()

    async def _ways(self) -> NoReturn:
        attempt = 0
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                await self._go(await self._next())
            except PlanChanged as turn:
                extra = {"relay": self._settings.relay.name, "reason": str(turn)}
                logger.log(logging.INFO if turn.orderly else logging.WARNING, "relay turns", extra=extra)
            except SlotBusy as taken:
                await self._wait_for_slot(taken)
            except BROKER_OUTAGES as error:
                attempt = 1 if time.monotonic() - began > GOOD_SECONDS else attempt + 1
                self._careful = isinstance(error, DeliveryFailed) and error.refused and not self._known()
                report(error, attempt)
                self._upkeep.wait(line(error))
                await self._pause(delay(attempt, self._settings.relay.backoff_limit))
        raise Done

    async def _next(self) -> Plan:
        """What to do now; a slot that holds back too much is dropped first."""
        found = await self._watch.look()
        want = await desired_plan(self._settings, self._asked, found)
        if await self._care.drop_oversized_slot(found, want.goal):
            found = await self._watch.look()
        way = possible_plan(self._settings, want, found)
        if way.mode == "poll" and found.mode == "debezium" and found.slot is not None and found.slot.pid is not None:
            raise SlotBusy("Debezium still reads the slot")
        self._watch.follow(way, found)
        if way.reason:
            message = "relay polls" if way.mode == "poll" else "relay not switched"
            logger.warning(message, extra={"relay": found.relay, "reason": way.reason})
        return way

    async def _go(self, way: Plan) -> None:
        self._upkeep.follow(Activity(way.mode, "waiting", way.reason or self._upkeep.waits_for))
        if way.recovering_to == "debezium":
            await ConnectorSupervisor(self._settings).release(forget=True)
        await together(self._prepare_topics(way), self._watch.turned(), self._until_stopped())
        if self._stop.is_set():
            return
        await self._watch.refuse_gone_back()
        turn = await (self._keep(way) if way.mode == "debezium" else self._publish(way))
        if turn is not None:
            raise turn

    async def _publish(self, way: Plan) -> PlanChanged | None:
        """Publish until told to stop, or to turn; raises the first thing that went wrong."""
        # Before reading begins: the server ends a stream of which it hears nothing for some seconds.
        await asyncio.to_thread(check_database, self._settings)
        if way.mode == "cdc":
            await self._let_fail_over()
        admission = RecordLimits(self._settings, self._refused, NewTopics(self._settings, self._tell(way)))
        await admission.learn(self._registry.topics)
        grave = DeadRows(self._settings, self._registry)
        producing = Publisher(self._settings, admission, grave.mark_dead, careful=self._careful)
        async with self._source(way) as source, producing as publisher:
            floor = source if isinstance(source, PollSource) else WalFloor(lambda: publisher.confirmed)
            self._leads(way)
            doing = Activity(way.mode, way.doing, way.reason)
            self._upkeep.follow(doing, floor, lambda: publisher.delivered, self._watch.mark)
            work = [_read(source, publisher), self._confirm(source, publisher)]
            if way.recovering_to is not None:
                work.append(SlotRecovery(self._settings, lambda: floor.value, self._upkeep.say).run())
            elif self._asked == "auto" and self._watch.wish == "poll":
                work.append(self._care.drop_unwanted())
            turn = await self._until_turned(*work)
            await self._finish(way, source, publisher)
            return turn

    def _tell(self, way: Plan) -> Callable[[str | None], None]:
        """Takes why nothing is published in the middle of it, None when that goes on."""

        def tell(reason: str | None) -> None:
            if reason is None:
                self._upkeep.go_on(Activity(way.mode, way.doing, way.reason))
            else:
                self._upkeep.wait(reason)

        return tell

    async def _let_fail_over(self) -> None:
        found = await self._watch.look()
        if found.slot is not None and found.slot.failover is False:
            timeout = self._settings.database.connect_timeout
            async with await replication_connection(self._settings.database_url, timeout) as connection:
                await let_fail_over(connection, found)

    async def _keep(self, way: Plan) -> PlanChanged | None:
        """A term beside Debezium, which publishes."""
        keeper = ConnectorSupervisor(self._settings)
        await keeper.begin()
        self._leads(way)
        floor = SlotFloor(self._settings.relay.name)
        self._upkeep.follow(Activity(way.mode, way.doing, way.reason), floor, mark=self._watch.mark)
        turn = await self._until_turned(keeper.watch())
        await keeper.end()
        with contextlib.suppress(psycopg.Error):
            await self._upkeep.settle()
        self._stopped(way, left=0)
        return turn

    async def _until_turned(self, *work: Coroutine[Any, Any, Any]) -> PlanChanged | None:
        """All of this at once until told to stop, or to turn in order."""
        try:
            await together(
                *work, watch_topics(self._survey, self._cluster), self._watch.turned(), self._until_stopped()
            )
        except PlanChanged as turn:
            if not turn.orderly:
                raise
            return turn
        return None

    async def _confirm(self, source: CdcSource | PollSource, publisher: Publisher) -> None:
        """Acknowledgements come in, and confirmations go out, also while reading waits for room."""
        while True:
            publisher.poll()
            source.confirm(self._proved(source, publisher))
            await asyncio.sleep(0.01 if publisher.in_flight else 0.05)

    def _proved(self, source: CdcSource | PollSource, publisher: Publisher) -> int | None:
        """What may be confirmed: to a slot only what was saved, so that another slot of its name is told from it."""
        return publisher.confirmed if isinstance(source, PollSource) else self._upkeep.saved

    async def _finish(self, way: Plan, source: CdcSource | PollSource, publisher: Publisher) -> None:
        """What is in flight arrives and is confirmed, within a few seconds."""
        whole = await publisher.flush(FLUSH_SECONDS)
        with contextlib.suppress(psycopg.Error, TimeoutError):
            async with asyncio.timeout(SETTLE_SECONDS):
                await self._upkeep.settle()
        source.confirm(self._proved(source, publisher))
        self._stopped(way, left=0 if whole else publisher.in_flight)

    async def _wait_for_slot(self, taken: SlotBusy) -> None:
        self._upkeep.wait(await self._care.taken(taken))
        await self._pause(TAKEN_SECONDS)

    def _source(self, way: Plan) -> CdcSource | PollSource:
        relay, url = self._settings.relay, self._settings.database_url
        if way.mode == "poll":
            return PollSource(url, **self._polling())
        patience = self._settings.database.connect_timeout
        return CdcSource(url, slot=relay.name, publication=relay.publication, connect_timeout=patience)

    def _polling(self) -> dict[str, Any]:
        relay, patience = self._settings.relay, self._settings.database.connect_timeout
        return {
            "name": relay.name,
            "interval": relay.poll_interval,
            "notify": relay.notify,
            "connect_timeout": patience,
            "largest": self._settings.outbox.max_bytes,
        }

    async def _prepare_topics(self, way: Plan) -> NoReturn:
        self._cluster = await asyncio.to_thread(prepare_topics, self._settings, self._registry, way.mode, self._survey)
        raise Done

    async def _until_stopped(self) -> NoReturn:
        await self._stop.wait()
        raise Done

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()

    def _leads(self, way: Plan) -> None:
        self._care.free()
        extra = {"relay": self._settings.relay.name, "mode": way.mode, "pid": os.getpid()}
        logger.info("relay leads", extra=extra)

    def _stopped(self, way: Plan, *, left: int) -> None:
        extra = {"relay": self._settings.relay.name, "mode": way.mode, "left": left}
        logger.log(logging.WARNING if left else logging.INFO, "relay stopped", extra=extra)

    def _known(self) -> bool:
        """Whether the row that was refused is known by now."""
        return self._careful and bool(self._refused)


def prepare_topics(settings: Settings, registry: Registry, mode: str, survey: Survey) -> Cluster:
    """The topics are there and as they must be; ServiceUnreachable or UsageError; blocking."""
    cluster = topics.prepare(settings, survey, registry.topics)
    beat.prepare_topic(settings)
    if mode == "debezium":
        kafka.prepare_topic(settings, heartbeats(settings), partitions=1)
    return cluster


async def watch_topics(survey: Survey, cluster: Cluster) -> NoReturn:
    """TopicsChanged when a topic is another one than in `cluster`, or has another partition count, or all of Kafka is."""
    while True:
        await asyncio.sleep(TOPICS_SECONDS)
        # That Kafka is away is noticed by whoever publishes.
        with contextlib.suppress(ServiceUnreachable):
            now = await asyncio.to_thread(survey.look, cluster.topics)
            if reason := topics.change(cluster, now):
                raise TopicsChanged(reason)


def line(error: BaseException) -> str:
    """The error in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def report(error: BaseException, attempt: int) -> None:
    """An outage, which is waited out."""
    extra = {"attempt": attempt, "error": line(error)}
    if isinstance(error, psycopg.Error):
        extra["sqlstate"] = error.sqlstate or ""
    if isinstance(error, StreamsError):
        extra["kind"] = type(error).__name__
    logger.warning("relay interrupted", extra=extra)


async def _read(source: CdcSource | PollSource, publisher: Publisher) -> None:
    async for rows in source:
        await publisher.publish(rows)
