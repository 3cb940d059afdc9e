"""A deployment as its settings describe it, for commands.

It is one snapshot, with what Kafka says just now.
"""

from __future__ import annotations

from sqlalchemy import Connection

from streams.broker import beat
from streams.broker.consumers import consumer_group
from streams.errors import ServiceUnreachable
from streams.operate.limits import limits_of
from streams.operate.look import look
from streams.operate.snapshot import Broker, Snapshot
from streams.registry import Registry
from streams.settings import Settings


def deployment(connection: Connection, settings: Settings, registry: Registry) -> Snapshot:
    """Look at the database and ask Kafka.

    It blocks. What does not answer is part of the snapshot.
    """
    broker = _broker(settings, registry)
    gone_back = None
    if settings.broker.url and broker.error is None:
        gone_back = beat.looked(settings, connection)
    connection.rollback()
    return look(
        connection, limits_of(settings, registry.consumed), broker=broker, gone_back=gone_back
    )


def _broker(settings: Settings, registry: Registry) -> Broker:
    if not settings.broker.url:
        unset = "no broker is set, so nobody can say who consumes: set BROKER_URL"
        return Broker(faults=(unset,))
    try:
        return Broker(faults=tuple(consumer_group(settings, registry.consumed).faults))
    except ServiceUnreachable as error:
        return Broker(error=str(error))
