"""A term as the leader of some shards: polling them, and turning whenever they are dealt anew."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine
from typing import Any

from streams.registry import Registry
from streams.relay.leader.maintenance import Activity, LeaderMaintenance
from streams.relay.leader.monitor import PlanChanged
from streams.relay.leader.plan import Plan
from streams.relay.leader.session import LeaderSession
from streams.relay.leader.shard_lease import ShardLease
from streams.relay.leader.sweep import Sweep
from streams.relay.source.poll import PollSource
from streams.relay.source.shards import ShardSource
from streams.settings import Settings
from streams.tasks import together

logger = logging.getLogger("streams.relay")


class SharedLeaderSession(LeaderSession):
    """Runs while it may have shards, also when it has none; what is done once is done by the leader of the first."""

    def __init__(self, settings: Settings, registry: Registry, share: ShardLease, stop: asyncio.Event) -> None:
        super().__init__(settings, registry, "poll", share, stop)
        self._share = share

    async def run(self) -> None:
        """Until told to stop, with everything in flight confirmed."""
        await self._watch.look()
        self._upkeep = LeaderMaintenance(
            self._settings, self._asked, Activity("poll", "waiting"), self._registry.consumed
        )
        await together(self._upkeep.run(), self._watch.run(), self._ways())

    async def _next(self) -> Plan:
        await self._share.reassign()
        self._upkeep.first = self._share.first
        return await super()._next()

    async def _publish(self, way: Plan) -> PlanChanged | None:
        extra = {"relay": self._settings.relay.name, "pid": os.getpid(), "of": self._settings.relay.shards}
        if not self._share.shards:
            logger.info("relay stands by", extra=extra | {"reason": "all shards have leaders"})
            return await self._until_turned()
        logger.info("relay has shards", extra=extra | {"shards": ",".join(map(str, self._share.shards))})
        return await super()._publish(way)

    async def _until_turned(self, *work: Coroutine[Any, Any, Any]) -> PlanChanged | None:
        sweep = [Sweep(self._settings, self._registry).run()] if self._share.first else []
        return await super()._until_turned(*work, *sweep)

    def _source(self, way: Plan) -> PollSource:
        shards = self._settings.relay.shards
        return ShardSource(self._settings.database_url, shards=shards, mine=self._share.shards, **self._polling())
