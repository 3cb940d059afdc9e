"""The floor of a relay that reads the log: proved by log positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg

from streams.database import query
from streams.relay.postgres.floor import Sample, reached, settle
from streams.relay.postgres.lsn import lsn_number, lsn_text


class WalFloor:
    """Rises to a sampled id once nothing below it can come any more.

    That is when its writers have ended and `confirmed` is past the log's end of that moment.
    """

    def __init__(self, confirmed: Callable[[], int | None]) -> None:
        self._confirmed = confirmed
        self._sample: Sample | None = None
        self.value = 0

    @property
    def lsn(self) -> str | None:
        """Up to where everything is with the broker."""
        confirmed = self._confirmed()
        return None if confirmed is None else lsn_text(confirmed)

    def reset(self) -> None:
        """What a lost connection had sampled counts no more."""
        self._sample = None

    async def look(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """One look at the writers; raises the floor when the sample is below what is confirmed."""
        sample = self._sample
        if sample is None:
            # The id first: who drew it or an older one held the lock by then, and holds it still,
            # or has ended.
            newest = await _value(connection, "sampled_id") or 0
            sample = Sample(newest, await _writers(connection))
            if not sample.writers:
                sample = settle(sample, frozenset(), await _insert_lsn(connection))
        elif sample.lsn is None:
            writers = await _writers(connection)
            sample = settle(sample, writers, await _insert_lsn(connection))
        self._sample = sample
        if reached(sample, self._confirmed()):
            self.value, self._sample = max(self.value, sample.newest), None


async def _writers(connection: psycopg.AsyncConnection[Any]) -> frozenset[str]:
    rows = await connection.execute(query("outbox_writers"))
    return frozenset([row[0] async for row in rows])


async def _insert_lsn(connection: psycopg.AsyncConnection[Any]) -> int:
    return lsn_number(await _value(connection, "insert_lsn"))


async def _value(connection: psycopg.AsyncConnection[Any], name: str) -> Any:
    row = await (await connection.execute(query(name))).fetchone()
    return row[0] if row else None
