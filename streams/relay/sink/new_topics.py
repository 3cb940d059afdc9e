"""Topics of biz_types that this relay does not know: made as the database says, or waited for.

A newer version registers a biz_type, and business code enqueues it, while an older relay runs. Its
topic has to have the partitions that the newer version will look for, so that nobody guesses:
`outbox_biz_types` holds them. Where it does not, or Kafka refuses, the relay waits, and everything
behind that row with it: commits are published in their order.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import NamedTuple

import psycopg

from streams.backoff import delay
from streams.broker import kafka
from streams.database import connect, query
from streams.errors import UsageError
from streams.settings import Settings
from streams.tasks import apart

logger = logging.getLogger("streams.relay")

SAY_SECONDS = 60.0  # between two lines about one topic


class TopicShape(NamedTuple):
    """How a topic has to be made; None where whoever registered its biz_type did not say."""

    biz_type: str
    partitions: int | None
    replication_factor: int | None
    retention_hours: int | None


class NewTopics:
    """Makes topics of registered biz_types.

    `tell` takes why the relay waits, and None when it goes on.
    """

    def __init__(
        self, settings: Settings, tell: Callable[[str | None], None] = lambda reason: None
    ) -> None:
        self._settings = settings
        self._tell = tell

    async def made(self, topic: str) -> bool:
        """Whether this missing topic exists now; False when no biz_type is registered for it.

        Waits as long as one is, and its topic cannot be made. ServiceUnreachable or psycopg.Error
        in an outage.
        """
        attempt, logged_at = 0, -SAY_SECONDS
        try:
            while True:
                try:
                    shape = await self._registered(topic)
                    if shape is None:
                        return False
                    reason = await self._make(topic, shape)
                except UsageError as error:
                    reason = str(error)
                if reason is None:
                    return True
                self._tell(reason)
                if time.monotonic() - logged_at >= SAY_SECONDS:
                    logged_at = time.monotonic()
                    logger.warning(
                        "topic missing, the relay waits",
                        extra={"topic": topic, "reason": reason},
                    )
                attempt += 1
                await asyncio.sleep(delay(attempt, self._settings.relay.backoff_limit))
        finally:
            if attempt:
                self._tell(None)

    async def _registered(self, topic: str) -> TopicShape | None:
        timeout = self._settings.database.connect_timeout
        try:
            async with await connect(
                self._settings.database_url, connect_timeout=timeout
            ) as connection:
                row = await (
                    await connection.execute(query("topic_shape"), {"topic": topic})
                ).fetchone()
        except psycopg.errors.InsufficientPrivilege:
            raise UsageError(
                f"topic {topic} does not exist, and this role may not see who registered it:"
                " run GRANT SELECT ON outbox_biz_types"
            ) from None
        return None if row is None else TopicShape(*row)

    async def _make(self, topic: str, shape: TopicShape) -> str | None:
        """Why it cannot be made; None when it is there."""
        # Somebody else may have been faster.
        if await apart(kafka.topic_limits, self._settings, [topic]):
            return None
        if (
            shape.partitions is None
            or shape.replication_factor is None
            or shape.retention_hours is None
        ):
            return (
                f"topic {topic} of biz_type {shape.biz_type} does not exist, and nobody has"
                " registered how many partitions it has: start a worker that knows it,"
                " run `streams migrate` there, or make the topic"
            )
        wanted = {
            "partitions": shape.partitions,
            "replication_factor": shape.replication_factor,
            "retention_hours": shape.retention_hours,
        }
        try:
            await apart(kafka.make_topic, self._settings, topic, **wanted)
        except (UsageError, kafka.TooFewBrokers) as error:
            # No outage: this topic's number of replicas alone may be more than there are brokers.
            raise UsageError(
                f"{error}; make it, or run `streams biz-types retire {shape.biz_type}`"
            ) from None
        return None
