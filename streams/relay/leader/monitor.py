"""What a leader looks at once a second: that it leads, that this is its database, its slot, and what operators want."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import NoReturn

from streams.relay.leader.lock import Leadership
from streams.relay.leader.plan import Plan
from streams.relay.postgres.continuity import gone, refuse_stranger
from streams.relay.postgres.snapshot import RelaySnapshot
from streams.settings import Settings

logger = logging.getLogger("streams.relay")

LOOK_SECONDS = 1.0
REPEAT_SECONDS = 60.0


class PlanChanged(Exception):
    """The leader has to go another way; `orderly` when what is in flight can be waited for and confirmed first."""

    def __init__(self, reason: str, *, orderly: bool) -> None:
        super().__init__(reason)
        self.orderly = orderly


class Watch:
    """`run` looks until cancelled, and ends with psycopg.Error when the lead is lost, UsageError when the database is
    another one.  Whoever goes a way waits in `turned`."""

    def __init__(self, settings: Settings, asked: str, leadership: Leadership) -> None:
        self._settings = settings
        self._asked = asked
        self._leadership = leadership
        self._way = Plan("poll")
        self.wish: str | None = None
        self.mark: str | None = None
        self._turn = asyncio.get_running_loop().create_future()
        self._warned = -REPEAT_SECONDS
        self.reader = leadership.reader
        self.refuse_gone_back = leadership.refuse_gone_back
        self.may_drop = True

    async def look(self) -> RelaySnapshot:
        """Look now; refuses a strange database."""
        found = await self._leadership.look()
        refuse_stranger(found)
        return found

    def follow(self, way: Plan, found: RelaySnapshot) -> None:
        """From now on this is the way, chosen by this look.  `mark` is the publication with which the log is read, if it is."""
        self._way, self.wish = way, found.wish
        self.mark = found.publication if way.mode != "poll" else None
        self._turn = asyncio.get_running_loop().create_future()

    async def run(self) -> NoReturn:
        """One look after another."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            found = await self.look()
            self._warn(found)
            turn = self._judge(found)
            if turn is not None and not self._turn.done():
                self._turn.set_result(turn)

    async def turned(self) -> NoReturn:
        """Until the way has to be left, then Turn."""
        raise await asyncio.shield(self._turn)

    def exceeds_wal_limit(self, found: RelaySnapshot, goal: str) -> bool:
        """Whether the slot holds back more WAL than it may, and a relay that means to publish in this mode can end that."""
        limit = self._settings.relay.wal_limit
        slot = found.slot if self.may_drop else None
        if limit is None or slot is None or not slot.ours or slot.held <= limit:
            return False
        return goal != "debezium" or self._settings.connect.register

    def _judge(self, found: RelaySnapshot) -> PlanChanged | None:
        if self._leadership.turn is not None:
            return PlanChanged(self._leadership.turn, orderly=True)
        if self._asked == "auto" and found.wish != self.wish:
            return PlanChanged(f"an operator switched it to {found.wish}", orderly=True)
        reason = gone(found) if self._way.mode != "poll" else None
        if reason is None and self.mark not in (None, found.publication):
            reason = "the publication was changed"
        if reason is not None:
            return PlanChanged(reason, orderly=False)
        if self.exceeds_wal_limit(found, self._way.goal):
            return PlanChanged("the slot holds back more than relay.wal_limit", orderly=False)
        return None

    def _warn(self, found: RelaySnapshot) -> None:
        slot, now = found.slot, time.monotonic()
        if slot is None or slot.held <= self._settings.relay.wal_warn or now - self._warned < REPEAT_SECONDS:
            return
        self._warned = now
        extra = {"relay": found.relay, "held_bytes": slot.held, "wal_status": slot.wal_status}
        logger.warning("slot holds back WAL", extra=extra)
