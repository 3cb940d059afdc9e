"""Whether the database went back, asked of Kafka first and of the database second."""

from __future__ import annotations

from typing import Any

import psycopg

from streams.broker import beat
from streams.database import query
from streams.settings import Settings
from streams.tasks import apart


async def refuse_gone_back(settings: Settings, connection: psycopg.AsyncConnection[Any]) -> None:
    """UsageError when the database behind this connection counted less than Kafka knows.

    ServiceUnreachable without Kafka.
    """
    beats = await apart(beat.read, settings)
    rows = await (await connection.execute(query("beats"))).fetchall()
    beat.refuse_gone_back(beats, rows, settings.relay.name)
