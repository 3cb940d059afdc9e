"""What a leader does to its slot beside reading it: drop it, or say who has it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from streams.database import connect
from streams.errors import UsageError
from streams.relay.debezium.supervisor import ConnectorSupervisor
from streams.relay.leader.monitor import Monitor
from streams.relay.postgres import slot
from streams.relay.postgres.checks import check_slot
from streams.relay.postgres.slot import SlotBusy
from streams.relay.postgres.snapshot import RelaySnapshot
from streams.settings import Settings
from streams.tasks import apart

logger = logging.getLogger("streams.relay")

TAKEN_SECONDS = 1.0
# A slot that is still taken after this long is not one whose last reader the server has yet to
# miss.
TAKEN_LONG_SECONDS = 8.0


class SlotCare:
    """Looks after the slot of one term."""

    def __init__(self, settings: Settings, monitor: Monitor) -> None:
        self._settings = settings
        self._monitor = monitor
        self._taken_since: float | None = None
        self._said = False

    async def drop_oversized_slot(self, snapshot: RelaySnapshot, goal: str) -> bool:
        """Drop the slot if it holds back too much, whatever is lost with it is in the outbox.

        SlotBusy while it is read.
        """
        exceeds_wal_limit = self._monitor.exceeds_wal_limit(snapshot, goal)
        if exceeds_wal_limit:
            await self._drop(snapshot, goal)
        return exceeds_wal_limit

    async def drop_unwanted(self) -> None:
        """Drop the slot that nobody will read.

        Operators switched to poll, and polling has begun.
        """
        while self._monitor.may_drop:
            snapshot = await self._monitor.look()
            if snapshot.slot is None or not snapshot.slot.ours:
                return
            with contextlib.suppress(SlotBusy):
                await self._drop(snapshot, "poll")
            await asyncio.sleep(TAKEN_SECONDS)

    async def taken(self, error: SlotBusy) -> str:
        """Why the slot cannot be had; when that has been so for long, by whom it is taken."""
        now = time.monotonic()
        self._taken_since = self._taken_since or now
        if now - self._taken_since < TAKEN_LONG_SECONDS:
            return str(error)
        reason = await self._monitor.reader() or str(error)
        if not self._said:
            logger.warning(
                "slot taken", extra={"relay": self._settings.relay.name, "reason": reason}
            )
        self._said = True
        return reason

    def free(self) -> None:
        """It is not taken any more."""
        self._taken_since, self._said = None, False

    async def _drop(self, snapshot: RelaySnapshot, goal: str) -> None:
        """Drop the slot of a relay that means to publish from it.

        When this role may not, or it is another outbox's, it says that and leaves the slot.
        """
        assert snapshot.slot is not None
        if goal == "debezium":
            await ConnectorSupervisor(self._settings).release()
        timeout = self._settings.database.connect_timeout
        async with await connect(
            self._settings.database_url, connect_timeout=timeout
        ) as connection:
            try:
                await apart(check_slot, self._settings)
                await slot.drop(connection, snapshot.relay)
            except UsageError as error:
                self._monitor.may_drop = False
                logger.warning(
                    "slot not dropped", extra={"relay": snapshot.relay, "reason": str(error)}
                )
                return
        logger.warning(
            "slot dropped", extra={"relay": snapshot.relay, "held_bytes": snapshot.slot.held}
        )
