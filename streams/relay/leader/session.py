"""A leader's session: one plan after another, until the lead is lost or it is told to stop.

plan by plan: rows are read and published, until ...
PlanChanged      an operator switches the mode, or the slot is gone: confirm what is in flight, if
                 that can be; next plan
BrokerDown       the broker is away, or refuses a record: a pause, and the next plan
SlotBusy         another process reads the slot: a pause, and the next plan
Stopped          it is told to stop: confirm what is in flight, and return
psycopg.Error    the database is lost, and the lead with it: raised
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, NoReturn

import psycopg
from confluent_kafka import KafkaException

from streams.backoff import delay
from streams.broker import beat, kafka, topics
from streams.broker.topics import Cluster, Survey
from streams.database.refusals import words
from streams.errors import ServiceUnreachable, StreamsError
from streams.registry import Registry
from streams.relay.debezium.config import heartbeats
from streams.relay.debezium.supervisor import ConnectorSupervisor, SlotFloor
from streams.relay.leader.housekeeping import Housekeeping
from streams.relay.leader.lock import Leadership
from streams.relay.leader.maintenance import Activity, LeaderMaintenance
from streams.relay.leader.monitor import Monitor, PlanChanged
from streams.relay.leader.plan import Plan, desired_plan, possible_plan
from streams.relay.leader.slot_recovery import SlotRecovery
from streams.relay.leader.sweep import Sweep
from streams.relay.leader.wal_guard import TAKEN_SECONDS, SlotCare
from streams.relay.postgres.checks import check_database
from streams.relay.postgres.connections import replication_connection
from streams.relay.postgres.slot import SlotBusy, let_fail_over
from streams.relay.sink.dead_rows import DeadRows
from streams.relay.sink.limits import RecordLimits
from streams.relay.sink.new_topics import NewTopics
from streams.relay.sink.publisher import DeliveryFailed, Publisher
from streams.relay.source.cdc import CdcSource
from streams.relay.source.poll import PollSource
from streams.relay.source.source import Source
from streams.settings import Settings
from streams.tasks import apart, ended_by, first_to_end

logger = logging.getLogger("streams.relay")

FLUSH_SECONDS = 4.0
SETTLE_SECONDS = 2.0
# A plan that went well for this long was no failed attempt.
GOOD_SECONDS = 5.0
# librdkafka asks for a topic's partitions again every five minutes.
TOPICS_SECONDS = 5.0


class TopicsChanged(StreamsError):
    """A topic or the cluster is another one than before: they have to be prepared again."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """It was told to stop; what is in flight is waited for and confirmed first."""

    orderly = True


@dataclass(frozen=True, slots=True)
class BrokerDown:
    """The broker is in the way, and waited out without giving up the lead."""

    reason: Exception


Ended = Stopped | PlanChanged  # what ends the work on a plan while all is well
Outcome = Ended | SlotBusy | BrokerDown
BROKER_OUTAGES = (KafkaException, DeliveryFailed, ServiceUnreachable, TopicsChanged)


class LeaderSession:
    """Runs while it leads.

    psycopg.Error when the database is lost, UsageError when a person has to change something.
    """

    _first = True  # whether it leads all there is, or the first shard, from the beginning

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        asked: str,
        leadership: Leadership,
        stop: asyncio.Event,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._asked = asked
        self._stop = stop
        self._monitor = Monitor(settings, asked, leadership)
        self._slot = SlotCare(settings, self._monitor)
        self._careful = False
        self._refused: dict[int, str] = {}
        self._survey = Survey(settings)
        self._saved_floor = 0
        # As old as the session: what they have seen of a range or a topic is not seen again.
        self._sweep = Sweep(settings, registry)
        self._housekeeping = Housekeeping(settings, registry.topics, registry.envelopes)

    async def run(self) -> None:
        """Publish until told to stop, with everything in flight confirmed."""
        activity, topics_consumed = await self._first_activity(), self._registry.consumed
        self._maintenance = LeaderMaintenance(
            self._settings,
            self._asked,
            activity,
            topics_consumed,
            first=self._first,
            unsent=lambda: self._sweep.waits,
        )
        attempt = 0
        async with ended_by(*self._beside()):
            while not self._stop.is_set():
                began = time.monotonic()
                outcome: Outcome
                try:
                    outcome = await self._publish(await self._plan())
                except SlotBusy as busy:
                    outcome = busy
                except BROKER_OUTAGES as error:
                    outcome = BrokerDown(error)
                match outcome:
                    case Stopped():
                        return
                    case PlanChanged(why, orderly):
                        extra = {"relay": self._settings.relay.name, "reason": why}
                        logger.log(
                            logging.INFO if orderly else logging.WARNING,
                            "relay changes mode",
                            extra=extra,
                        )
                    case SlotBusy():
                        self._maintenance.wait(await self._slot.taken(outcome))
                        await self._pause(TAKEN_SECONDS)
                    case BrokerDown(reason):
                        attempt = 1 if time.monotonic() - began > GOOD_SECONDS else attempt + 1
                        refused = isinstance(reason, DeliveryFailed) and reason.refused
                        self._careful = refused and not self._known()
                        report(reason, attempt)
                        self._maintenance.wait(words(reason))
                        await self._pause(delay(attempt, self._settings.relay.backoff_limit))

    async def drop_oversized_slot(self) -> None:
        """Do what a leader does for the database when it cannot even begin to publish.

        It cares for the disk, and for room for new rows.
        """
        await LeaderMaintenance(
            self._settings, self._asked, Activity("waiting", "waiting")
        ).make_room()
        snapshot = await self._monitor.look()
        desired = await desired_plan(self._settings, self._asked, snapshot)
        await self._slot.drop_oversized_slot(snapshot, desired.goal)

    async def _first_activity(self) -> Activity:
        snapshot = await self._monitor.look()
        desired = await desired_plan(self._settings, self._asked, snapshot)
        return Activity(snapshot.mode or desired.mode, "waiting")

    def _beside(self) -> list[Coroutine[Any, Any, None]]:
        """What a leader does all the time, whatever its plan is."""
        return [self._maintenance.run(), self._monitor.run(), *self._once()]

    def _once(self) -> list[Coroutine[Any, Any, None]]:
        """What one relay of the name does for all of it, however many share the publishing."""
        return [self._sweep.run(), self._housekeeping.run()]

    async def _plan(self) -> Plan:
        """What to do now; a slot that holds back too much is dropped first."""
        snapshot = await self._monitor.look()
        desired = await desired_plan(self._settings, self._asked, snapshot)
        if await self._slot.drop_oversized_slot(snapshot, desired.goal):
            snapshot = await self._monitor.look()
        plan = possible_plan(self._settings, desired, snapshot)
        slot = snapshot.slot
        if (
            plan.mode == "poll"
            and snapshot.mode == "debezium"
            and slot is not None
            and slot.pid is not None
        ):
            raise SlotBusy("Debezium still reads the slot")
        self._monitor.follow(plan, snapshot)
        self._saved_floor = snapshot.floor
        if plan.reason:
            message = "relay polls" if plan.mode == "poll" else "relay not switched"
            logger.warning(message, extra={"relay": snapshot.relay, "reason": plan.reason})
        return plan

    async def _publish(self, plan: Plan) -> Ended:
        """Prepare what the plan needs, and publish by it until it is ended."""
        waits_for = plan.reason or self._maintenance.waits_for
        self._maintenance.set_activity(Activity(plan.mode, "waiting", waits_for))
        if plan.recovering_to == "debezium":
            await ConnectorSupervisor(self._settings).release(forget=True)
        prepared: Cluster | Ended = await first_to_end(
            self._prepare_topics(plan), self._monitor.changed(), self._stopped()
        )
        match prepared:
            case Cluster() as cluster:
                await self._monitor.refuse_gone_back()
            case ended:
                return ended
        if plan.mode == "debezium":
            return await self._supervise(plan, cluster)
        return await self._read_and_send(plan, cluster)

    async def _read_and_send(self, plan: Plan, cluster: Cluster) -> Ended:
        # Before reading begins: the server ends a stream of which it hears nothing for some
        # seconds.
        await apart(check_database, self._settings)
        if plan.mode == "cdc":
            await self._let_fail_over()
        limits = RecordLimits(
            self._settings, self._refused, NewTopics(self._settings, self._tell(plan))
        )
        await limits.learn(self._registry.topics)
        mark_dead = DeadRows(self._settings, self._registry).mark_dead

        async with (
            self._source(plan) as source,
            Publisher(self._settings, limits, mark_dead, careful=self._careful) as publisher,
        ):
            floor = source.floor(lambda: publisher.confirmed)
            if isinstance(source, CdcSource):
                source.skip(lambda: max(self._saved_floor, floor.value))
            self._leads(plan)
            activity, identity = (
                Activity(plan.mode, plan.doing, plan.reason),
                self._monitor.publication_identity,
            )
            self._maintenance.set_activity(activity, floor, lambda: publisher.delivered, identity)
            beside: list[Coroutine[Any, Any, Ended | None]]
            beside = [*self._until(cluster), self._confirm(source, publisher)]
            if plan.recovering_to is not None:
                beside.append(
                    SlotRecovery(self._settings, lambda: floor.value, self._maintenance.say).run()
                )
            elif self._asked == "auto" and self._monitor.wish == "poll":
                beside.append(self._slot.drop_unwanted())

            async with ended_by[Ended](*beside) as ending:
                async for rows in source:
                    await publisher.publish(rows)

            ended = ending.outcome
            assert ended is not None, "a source goes on until it is left"
            if ended.orderly:
                await self._finish(plan, source, publisher)
            return ended

    async def _supervise(self, plan: Plan, cluster: Cluster) -> Ended:
        """Look after Debezium, which publishes."""
        connector = ConnectorSupervisor(self._settings)
        await connector.begin()
        self._leads(plan)
        floor, identity = SlotFloor(self._settings.relay.name), self._monitor.publication_identity
        activity = Activity(plan.mode, plan.doing, plan.reason)
        self._maintenance.set_activity(activity, floor, publication_identity=identity)
        ended: Ended = await first_to_end(*self._until(cluster), connector.watch(self._tell(plan)))
        if ended.orderly:
            await connector.end()
            with contextlib.suppress(psycopg.Error):
                await self._maintenance.settle()
            self._left(plan, in_flight=0)
        return ended

    def _until(self, cluster: Cluster) -> list[Coroutine[Any, Any, Ended | None]]:
        """What ends the work on a plan.

        TopicsChanged when a topic is not the one of this cluster any more.
        """
        return [watch_topics(self._survey, cluster), self._monitor.changed(), self._stopped()]

    def _tell(self, plan: Plan) -> Callable[[str | None], None]:
        """Takes why nothing is published in the middle of it, None when that goes on."""

        def tell(reason: str | None) -> None:
            if reason is None:
                self._maintenance.go_on(Activity(plan.mode, plan.doing, plan.reason))
            else:
                self._maintenance.wait(reason)

        return tell

    async def _let_fail_over(self) -> None:
        snapshot = await self._monitor.look()
        if snapshot.slot is not None and snapshot.slot.failover is False:
            timeout = self._settings.database.connect_timeout
            async with await replication_connection(
                self._settings.database_url, timeout
            ) as connection:
                await let_fail_over(connection, snapshot)

    async def _confirm(self, source: Source, publisher: Publisher) -> NoReturn:
        """Acknowledgements come in, and confirmations go out, also while reading waits for room."""
        while True:
            publisher.poll()
            source.confirm(source.provable(publisher.confirmed, self._maintenance.saved))
            await asyncio.sleep(0.01 if publisher.in_flight else 0.05)

    async def _finish(self, plan: Plan, source: Source, publisher: Publisher) -> None:
        """What is in flight arrives and is confirmed, within a few seconds."""
        whole = await publisher.flush(FLUSH_SECONDS)
        with contextlib.suppress(psycopg.Error, TimeoutError):
            async with asyncio.timeout(SETTLE_SECONDS):
                await self._maintenance.settle()
        source.confirm(source.provable(publisher.confirmed, self._maintenance.saved))
        self._left(plan, in_flight=0 if whole else publisher.in_flight)

    def _source(self, plan: Plan) -> Source:
        relay, url = self._settings.relay, self._settings.database_url
        if plan.mode == "poll":
            return PollSource(url, **self._polling())
        patience = self._settings.database.connect_timeout
        return CdcSource(
            url, slot=relay.name, publication=relay.publication, connect_timeout=patience
        )

    def _polling(self) -> dict[str, Any]:
        relay, patience = self._settings.relay, self._settings.database.connect_timeout
        return {
            "name": relay.name,
            "interval": relay.poll_interval,
            "notify": relay.notify,
            "connect_timeout": patience,
            "largest": self._settings.outbox.max_bytes,
        }

    async def _prepare_topics(self, plan: Plan) -> Cluster:
        return await apart(
            prepare_topics, self._settings, self._registry, plan.mode, self._survey, patient=False
        )

    async def _stopped(self) -> Stopped:
        await self._stop.wait()
        return Stopped()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()

    def _leads(self, plan: Plan) -> None:
        self._slot.free()
        extra = {"relay": self._settings.relay.name, "mode": plan.mode, "pid": os.getpid()}
        logger.info("relay leads", extra=extra)

    def _left(self, plan: Plan, *, in_flight: int) -> None:
        extra = {"relay": self._settings.relay.name, "mode": plan.mode, "left": in_flight}
        logger.log(logging.WARNING if in_flight else logging.INFO, "relay stopped", extra=extra)

    def _known(self) -> bool:
        """Whether the row that was refused is known by now."""
        return self._careful and bool(self._refused)


def prepare_topics(
    settings: Settings, registry: Registry, mode: str, survey: Survey, *, patient: bool = True
) -> Cluster:
    """The topics are there and as they must be; ServiceUnreachable or UsageError; blocking.

    A session, which tries again by itself and may be told to stop, is not `patient` with brokers
    that are only starting.
    """
    cluster = topics.prepare(settings, survey, registry.topics, patient=patient)
    beat.prepare_topic(settings, patient=patient)
    if mode == "debezium":
        kafka.prepare_topic(settings, heartbeats(settings), partitions=1, patient=patient)
    return cluster


async def watch_topics(survey: Survey, cluster: Cluster) -> NoReturn:
    """TopicsChanged when a topic, or all of Kafka, is another one than in `cluster`.

    A topic with another partition count is another one too.
    """
    while True:
        await asyncio.sleep(TOPICS_SECONDS)
        # That Kafka is away is noticed by whoever publishes.
        with contextlib.suppress(ServiceUnreachable):
            now = await apart(survey.look, cluster.topics)
            if reason := topics.change(cluster, now):
                raise TopicsChanged(reason)


def report(error: BaseException, attempt: int) -> None:
    """An outage, which is waited out."""
    extra = {"attempt": attempt, "error": words(error)}
    if isinstance(error, psycopg.Error):
        extra["sqlstate"] = error.sqlstate or ""
    if isinstance(error, StreamsError):
        extra["kind"] = type(error).__name__
    logger.warning("relay interrupted", extra=extra)
