"""A relay: it stands by, leads for a session, backs off, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
from contextlib import AsyncExitStack

import psycopg
from confluent_kafka import KafkaException

from streams.backoff import delay
from streams.broker.topics import Survey
from streams.database.refusals import told
from streams.errors import ServiceUnreachable, UsageError
from streams.registry import Registry
from streams.relay.leader.lock import Leadership
from streams.relay.leader.plan import desired_plan
from streams.relay.leader.session import LeaderSession, TopicsChanged, prepare_topics, report
from streams.relay.leader.shard_lease import ShardLease
from streams.relay.leader.shared_session import SharedLeaderSession
from streams.relay.postgres.checks import check_database
from streams.relay.postgres.continuity import refuse_stranger
from streams.relay.postgres.slot import SlotBusy
from streams.relay.postgres.snapshot import RelaySnapshot
from streams.relay.sink.publisher import DeliveryFailed
from streams.settings import Settings, redact
from streams.tasks import apart, first_to_end

logger = logging.getLogger("streams.relay")

STANDBY_SECONDS = 1.0
# A session that lasted this long was no failed attempt.
GOOD_SESSION_SECONDS = 5.0

OUTAGES = (
    psycopg.Error,
    KafkaException,
    DeliveryFailed,
    ServiceUnreachable,
    TopicsChanged,
    OSError,
)


class Relay:
    """Publishes what is committed to the outbox.

    `stop` ends it with everything in flight confirmed.

    `mode` is cdc, poll, debezium, or auto: what an operator asked for last, else cdc where the
    server and the role allow it, else poll.
    """

    def __init__(self, settings: Settings, registry: Registry, mode: str) -> None:
        self._settings = settings
        self._mode = mode
        self._registry = registry
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Finish what is in flight, then return from `run`."""
        self._stop.set()

    async def run(self) -> None:
        """Until stopped; outages are waited out.

        Raises UsageError or ServiceUnreachable when it cannot start, UsageError also when the
        deployment changed since.
        """
        # Nothing is held before it leads, so there is nothing to put in order when it is told to
        # stop.
        await first_to_end(self._check(), self._stop.wait())
        attempt = 0
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                leadership, session = self._roles()
                async with AsyncExitStack() as held:
                    await first_to_end(self._stand_by(held, leadership), self._stop.wait())
                    if not self._stop.is_set():
                        began = time.monotonic()
                        await session.run()
            except OUTAGES as error:
                attempt = 1 if time.monotonic() - began > GOOD_SESSION_SECONDS else attempt + 1
                report(error, attempt)
                await self._pause(delay(attempt, self._settings.relay.backoff_limit))

    async def _check(self) -> bool:
        """Check what can be known before there is work; True.

        A person who starts it sees at once what is wrong.
        """
        shards = self._settings.relay.shards
        if shards > 1 and self._mode != "poll":
            raise UsageError(
                f"relay.shards is {shards}: expected 1 in mode {self._mode},"
                " only polling can be shared"
            )
        await apart(check_database, self._settings)
        try:
            async with Leadership(self._settings, self._mode) as leadership:
                snapshot = await leadership.look()
        except psycopg.Error as error:
            raise told(error, redact(self._settings.database_url)) from None
        refuse_stranger(snapshot)
        plan = await desired_plan(self._settings, self._mode, snapshot)
        try:
            await apart(
                prepare_topics, self._settings, self._registry, plan.mode, Survey(self._settings)
            )
        except ServiceUnreachable:
            await self._drop_oversized_slot()
            raise
        await self._refuse_gone_back()
        return True

    async def _refuse_gone_back(self) -> None:
        """UsageError when the database went back."""
        try:
            async with Leadership(self._settings, self._mode) as leadership:
                await leadership.refuse_gone_back()
        except psycopg.Error as error:
            raise told(error, redact(self._settings.database_url)) from None

    async def _drop_oversized_slot(self) -> None:
        """Drop the slot if it holds back too much log, although the relay cannot start.

        Without a broker it cannot, and a relay that is started again and again may be the only one
        to look at the slot.
        """
        with contextlib.suppress(*OUTAGES, SlotBusy):
            leadership = Leadership(self._settings, self._mode)
            async with leadership:
                if await leadership.take():
                    session = LeaderSession(
                        self._settings, self._registry, self._mode, leadership, self._stop
                    )
                    await session.drop_oversized_slot()

    def _roles(self) -> tuple[Leadership, LeaderSession]:
        """What stands by for the lead, and what runs while it has it."""
        settings, registry = self._settings, self._registry
        if settings.relay.shards > 1:
            lease = ShardLease(settings, self._mode)
            return lease, SharedLeaderSession(settings, registry, lease, self._stop)
        leadership = Leadership(settings, self._mode)
        return leadership, LeaderSession(settings, registry, self._mode, leadership, self._stop)

    async def _stand_by(self, held: AsyncExitStack, leadership: Leadership) -> bool:
        """Until this one leads: True. Others see that it waits until `held` is left."""
        await held.enter_async_context(leadership)
        logged = False
        while not await leadership.take():
            if not logged:
                self._say(await leadership.look(), leadership.why_not)
            logged = True
            await asyncio.sleep(STANDBY_SECONDS * random.uniform(0.7, 1.3))
        return True

    def _say(self, snapshot: RelaySnapshot, reason: str) -> None:
        extra = {"relay": snapshot.relay, "pid": os.getpid()}
        logger.info("relay stands by", extra=extra | ({"reason": reason} if reason else {}))
        if self._mode not in ("auto", snapshot.asked, snapshot.mode):
            differ = {
                "mode": self._mode,
                "leader_mode": snapshot.mode,
                "mend": "start all relays of a name in one mode",
            }
            logger.warning("relays of one name differ", extra=extra | differ)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            pass
