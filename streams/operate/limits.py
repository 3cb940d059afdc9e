"""What faults are measured by, from settings, with or without a Kafka client."""

from __future__ import annotations

from collections.abc import Iterable

from streams.database.retention import periods
from streams.operate.snapshot import Limits
from streams.settings import Settings


def limits_of(settings: Settings, topics: Iterable[str] = ()) -> Limits:
    """What faults are measured by here; without `topics` those that the group is known to read."""
    return Limits(
        relay=settings.relay.name,
        wal_warn=settings.relay.wal_warn,
        wal_limit=settings.relay.wal_limit,
        topics=tuple(topics),
        group=settings.worker.group,
        envelopes=frozenset(settings.envelope_sources),
        retains=not periods(settings, ()).endless,
    )
