"""What a leader looks at once a second: its lead, its database, its slot, operators' wishes."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import NoReturn

from streams.relay.leader.lock import Leadership
from streams.relay.leader.plan import Plan
from streams.relay.postgres.continuity import refuse_stranger, why_unreadable
from streams.relay.postgres.snapshot import RelaySnapshot
from streams.settings import Settings

logger = logging.getLogger("streams.relay")

LOOK_SECONDS = 1.0
REPEAT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class PlanChanged:
    """Another plan has to be made.

    `orderly` when what is in flight can be waited for and confirmed first.
    """

    reason: str
    orderly: bool


class Monitor:
    """Looks while it runs; whoever carries out a plan waits in `changed` for what ends it.

    `run` ends with psycopg.Error when the lead is lost, UsageError when the database is another
    one.
    """

    def __init__(self, settings: Settings, asked: str, leadership: Leadership) -> None:
        self._settings = settings
        self._asked = asked
        self._leadership = leadership
        self._plan = Plan("poll")
        self.wish: str | None = None
        self.publication_identity: str | None = None
        self._change: asyncio.Future[PlanChanged] = asyncio.get_running_loop().create_future()
        self._warned = -REPEAT_SECONDS
        self.reader = leadership.reader
        self.refuse_gone_back = leadership.refuse_gone_back
        self.may_drop = True

    async def look(self) -> RelaySnapshot:
        """The database as it is now; refuses a strange one."""
        snapshot = await self._leadership.look()
        refuse_stranger(snapshot)
        return snapshot

    def follow(self, plan: Plan, snapshot: RelaySnapshot) -> None:
        """From now on this is the plan, made by this snapshot.

        `publication_identity` is that of the publication with which the log is read, if it is.
        """
        self._plan, self.wish = plan, snapshot.wish
        self.publication_identity = snapshot.publication if plan.mode != "poll" else None
        self._change = asyncio.get_running_loop().create_future()

    async def run(self) -> NoReturn:
        """Look once a second."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            snapshot = await self.look()
            self._warn(snapshot)
            change = self._judge(snapshot)
            if change is not None and not self._change.done():
                self._change.set_result(change)

    async def changed(self) -> PlanChanged:
        """Wait until the plan has to be left; why."""
        return await asyncio.shield(self._change)

    def exceeds_wal_limit(self, snapshot: RelaySnapshot, goal: str) -> bool:
        """Whether the slot holds back more WAL than it may.

        Only where a relay that means to publish in this mode can end that.
        """
        limit = self._settings.relay.wal_limit
        slot = snapshot.slot if self.may_drop else None
        if limit is None or slot is None or not slot.ours or slot.held <= limit:
            return False
        return goal != "debezium" or self._settings.connect.register

    def _judge(self, snapshot: RelaySnapshot) -> PlanChanged | None:
        if self._leadership.turn is not None:
            return PlanChanged(self._leadership.turn, orderly=True)
        if self._asked == "auto" and snapshot.wish != self.wish:
            return PlanChanged(f"an operator switched it to {snapshot.wish}", orderly=True)
        reason = why_unreadable(snapshot) if self._plan.mode != "poll" else None
        if reason is None and self.publication_identity not in (None, snapshot.publication):
            reason = "the publication was changed"
        if reason is not None:
            return PlanChanged(reason, orderly=False)
        if self.exceeds_wal_limit(snapshot, self._plan.goal):
            return PlanChanged("the slot holds back more than relay.wal_limit", orderly=False)
        return None

    def _warn(self, snapshot: RelaySnapshot) -> None:
        slot, now = snapshot.slot, time.monotonic()
        if (
            slot is None
            or slot.held <= self._settings.relay.wal_warn
            or now - self._warned < REPEAT_SECONDS
        ):
            return
        self._warned = now
        extra = {"relay": snapshot.relay, "held_bytes": slot.held, "wal_status": slot.wal_status}
        logger.warning("slot holds back WAL", extra=extra)
