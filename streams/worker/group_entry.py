"""Whether a worker may be in its consumer group: one group must not read a topic for two databases.

Each would be given messages of the other, reject them and commit past them. So each says by its
client id for which database it works, and asks who else is there:

    enter       before it joins: whoever comes second is refused
    confirmed   once more when the first records have come, before they are worked: two that start
                at the same moment see nobody before they join
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

from streams.broker import consumers
from streams.database import migrate, query
from streams.errors import ServiceUnreachable, UsageError
from streams.registry import Registry
from streams.settings import Settings
from streams.worker.fail import fail_stop

logger = logging.getLogger(__name__)

# Beside a session that has to end.
LEFT_BEHIND_SECONDS = 2.0
# For so long records are kept back while Kafka does not say who is in the group.
UNKNOWN_SECONDS = 30.0
PAUSE_SECONDS = 0.5


class GroupEntry:
    """One worker's way into the group of the settings."""

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self._settings, self._topics = settings, registry.consumed
        self._identity = ""
        self._asking: asyncio.Future[None] | None = None
        self._confirmed = False

    def enter(self) -> str:
        """The client id to join with; it blocks.

        UsageError when workers of another database are in the group, on a topic that this one would
        read.
        """
        with migrate.connection(self._settings) as connection:
            self._identity = connection.exec_driver_sql(query("database_identity")).scalar_one()
        # One that was killed is a member for as long as its session lasts.
        until = time.monotonic() + self._settings.worker.session_timeout + LEFT_BEHIND_SECONDS
        while True:
            late = time.monotonic() > until
            try:
                others = self._others()
                # Who deals out partitions at this moment is asked again once they are dealt out.
                if not others and (others is not None or late):
                    return consumers.client_id(self._identity)
                if others and late:
                    raise UsageError(self._refusal(others))
            except ServiceUnreachable:
                # The first group of a new broker: it was reached a moment ago.
                if late:
                    raise
            time.sleep(PAUSE_SECONDS)

    async def confirmed(self) -> None:
        """Nobody else is in the group for another database; the process ends where somebody is."""
        if self._confirmed:
            return
        if self._asking is None:
            self._asking = asyncio.ensure_future(asyncio.to_thread(self._ask_again))
        await asyncio.shield(self._asking)
        self._confirmed = True

    def _ask_again(self) -> None:
        until = time.monotonic() + UNKNOWN_SECONDS
        while True:
            try:
                others = self._others()
            except (ServiceUnreachable, UsageError) as error:
                if time.monotonic() > until:
                    logger.warning(
                        "who is in the consumer group is not known", extra={"reason": str(error)}
                    )
                    return
                others = None
            if others:
                fail_stop("the worker stops before it works", reason=self._refusal(others))
            if others is not None:
                return
            time.sleep(PAUSE_SECONDS)

    def _others(self) -> Mapping[str, str] | None:
        return consumers.others(self._settings, self._identity, self._topics)

    def _refusal(self, others: Mapping[str, str]) -> str:
        topic, database = min(others.items())
        return (
            f"consumer group {self._settings.worker.group} reads topic {topic} for the outbox of"
            f" another database ({database}): set broker.topic_prefix and worker.group to what"
            " no other deployment on this broker has"
        )
