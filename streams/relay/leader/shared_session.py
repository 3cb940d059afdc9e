"""A session as the leader of some shards, with a new plan when they are dealt out again."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine
from typing import Any

from streams.broker.topics import Cluster
from streams.registry import Registry
from streams.relay.leader.maintenance import Activity
from streams.relay.leader.plan import Plan
from streams.relay.leader.session import Ended, LeaderSession
from streams.relay.leader.shard_lease import ShardLease
from streams.relay.source.shards import ShardSource
from streams.relay.source.source import Source
from streams.settings import Settings
from streams.tasks import ended_by, first_to_end

logger = logging.getLogger("streams.relay")


class SharedLeaderSession(LeaderSession):
    """Runs while it may have shards, also when it has none.

    What is done once is done by the leader of the first.
    """

    _first = False

    def __init__(
        self, settings: Settings, registry: Registry, lease: ShardLease, stop: asyncio.Event
    ) -> None:
        super().__init__(settings, registry, "poll", lease, stop)
        self._lease = lease
        self._leads_first = asyncio.Event()

    async def _first_activity(self) -> Activity:
        await self._monitor.look()
        return Activity("poll", "waiting")

    def _beside(self) -> list[Coroutine[Any, Any, None]]:
        return [self._maintenance.run(), self._monitor.run(), self._once_by_the_first()]

    async def _once_by_the_first(self) -> None:
        """From the moment it leads the first shard, which it gives to nobody while it lives.

        Beside all plans, so that it goes on while Kafka is away.
        """
        await self._leads_first.wait()
        async with ended_by[None](*self._once()):
            await asyncio.Future()

    async def _plan(self) -> Plan:
        # While shards change hands it is not known who has the first one.
        self._maintenance.first = False
        await self._lease.reassign()
        self._maintenance.first = self._lease.first
        if self._lease.first:
            self._leads_first.set()
        return await super()._plan()

    async def _read_and_send(self, plan: Plan, cluster: Cluster) -> Ended:
        extra = {
            "relay": self._settings.relay.name,
            "pid": os.getpid(),
            "of": self._settings.relay.shards,
        }
        if not self._lease.shards:
            logger.info("relay stands by", extra=extra | {"reason": "all shards have leaders"})
            return await first_to_end(*self._until(cluster))
        logger.info(
            "relay has shards", extra=extra | {"shards": ",".join(map(str, self._lease.shards))}
        )
        return await super()._read_and_send(plan, cluster)

    def _source(self, plan: Plan) -> Source:
        shards = self._settings.relay.shards
        return ShardSource(
            self._settings.database_url, shards=shards, mine=self._lease.shards, **self._polling()
        )
