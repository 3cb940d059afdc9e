"""How far the messages since a moment have come, counted in small steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg

# -- last_id --
# Where counting starts: messages of earlier runs are not counted.
LAST_ID: LiteralString = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM outbox_id_seq"

# -- relayed --
# Rows up to the floor are published or rolled back for good: each is looked at once.
RELAYED: LiteralString = """
SELECT floor.id, (
    SELECT count(*)
    FROM outbox
    WHERE id > %(counted)s AND id <= floor.id AND resend_of IS NULL
)
FROM (SELECT coalesce(max(floor), 0) AS id FROM relay_position) AS floor"""

# -- pending -- Committed and not known to be published; more than LIMIT is a backlog whose size
# does not matter here.
PENDING: LiteralString = """
SELECT count(*)
FROM (
    SELECT FROM outbox WHERE id > %(floor)s AND resend_of IS NULL ORDER BY id LIMIT 10000
) AS waiting"""

# -- settled -- The next rows: those in front that are settled and below the floor never have to be
# looked at again; of the others how many are persisted already, how many of these are above the
# floor, and how long the first that is not waits.
SETTLED: LiteralString = """
WITH upcoming AS (
    SELECT o.id, o.created_at, o.id <= %(floor)s AS below,
           coalesce(s.status IN ('consumed', 'dead', 'discarded'), false) AS settled,
           coalesce(s.status = 'consumed', false) AS persisted
    FROM outbox AS o
    LEFT JOIN outbox_state AS s ON s.outbox_id = o.id
    WHERE o.id > %(settled)s AND o.resend_of IS NULL
    ORDER BY o.id
    LIMIT 10000
), front AS (
    SELECT coalesce(min(id) FILTER (WHERE NOT (settled AND below)), max(id) + 1) AS end
    FROM upcoming
)
SELECT coalesce(max(id) FILTER (WHERE id < front.end), %(settled)s),
       count(*) FILTER (WHERE persisted AND id < front.end),
       count(*) FILTER (WHERE persisted AND id >= front.end),
       count(*) FILTER (WHERE persisted AND NOT below),
       coalesce(
           extract(
               epoch FROM (now() AT TIME ZONE 'UTC') - min(created_at) FILTER (WHERE NOT settled)
           ), 0
       )::double precision
FROM upcoming, front"""


@dataclass(frozen=True, slots=True)
class Counts:
    """Messages since counting began.

    `lag_seconds` is the age of the oldest one that is not settled.
    """

    committed: int = 0
    relayed: int = 0
    persisted: int = 0
    lag_seconds: float = 0.0

    @property
    def lag(self) -> int:
        """Messages that are committed and not persisted."""
        return max(0, self.committed - self.persisted)


class Counters:
    """Counts from the moment of `begin` on; a step looks at new rows only."""

    def __init__(self) -> None:
        self._floor = self._settled = self._relayed = self._persisted = 0

    async def begin(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Count what is written from now on."""
        (self._floor,) = await _row(connection, LAST_ID, {})
        self._settled = self._floor

    async def step(self, connection: psycopg.AsyncConnection[Any]) -> Counts:
        """The counts now."""
        floor, new = await _row(connection, RELAYED, {"counted": self._floor})
        if floor > self._floor:
            self._floor, self._relayed = floor, self._relayed + new
        (waiting,) = await _row(connection, PENDING, {"floor": self._floor})
        known = {"settled": self._settled, "floor": self._floor}
        self._settled, persisted, ahead, above, waits = await _row(connection, SETTLED, known)
        self._persisted += persisted
        # The floor follows twice a second; what is persisted was relayed, wherever the floor is.
        return Counts(
            self._relayed + waiting, self._relayed + above, self._persisted + ahead, waits
        )


async def _row(
    connection: psycopg.AsyncConnection[Any], statement: LiteralString, values: dict[str, Any]
) -> Any:
    cursor = await connection.execute(statement, values)
    return await cursor.fetchone()
