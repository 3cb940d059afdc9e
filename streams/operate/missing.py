"""What of a deployment is missing, in one line each: a leader, workers, a topic, Kafka itself; for `streams status`."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from streams.broker.consumers import consumer_group
from streams.errors import ServiceUnreachable
from streams.operate.relay_status import RelayStatus, standing
from streams.registry import Registry
from streams.settings import Settings


def missing(settings: Settings, registry: Registry, connection: Connection, relays: Sequence[RelayStatus]) -> list[str]:
    """One line for each thing that is not there; empty when all is.

    `relays` are those that the database knows; that of the settings is looked at too.  Blocking.
    """
    known = list(relays)
    if not any(relay.name == settings.relay.name for relay in known):
        known += standing(connection, settings.relay.name)
    return [*(fault for relay in known for fault in relay.faults), *_unread(settings, registry)]


def _unread(settings: Settings, registry: Registry) -> list[str]:
    if not settings.broker.url:
        return ["no broker is set, so nobody can say who consumes: set BROKER_URL"]
    try:
        return consumer_group(settings, registry.consumed).faults
    except ServiceUnreachable as error:
        return [str(error)]
