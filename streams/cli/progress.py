"""Where the messages are and how far behind the relays are, from queries whose cost does not grow with the tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

CAP = 10_000
FRESH = "10 seconds"

# -- relays --
# Rows and seconds behind: ids drawn since the floor (rolled back ones too), and the age of the oldest row above it.
RELAYS = f"""
SELECT r.mode, r.pid, r.pid IS NOT NULL AND r.heartbeat > now() - interval '{FRESH}' AS leads,
       greatest(0, s.last_id - r.floor) AS rows,
       greatest(0, coalesce(extract(epoch FROM (now() AT TIME ZONE 'UTC') - oldest.created_at), 0))::double precision
FROM relay_position AS r
CROSS JOIN (SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS last_id FROM outbox_id_seq) AS s
LEFT JOIN LATERAL (SELECT created_at FROM outbox WHERE id > r.floor ORDER BY id LIMIT 1) AS oldest ON true
ORDER BY r.name"""

# -- pending --
# Committed rows above the floor whose fate has not begun, at most one more than the cap.
PENDING = f"""
SELECT count(*)
FROM (
    SELECT FROM outbox AS o
    WHERE id > (SELECT coalesce(max(floor), 0) FROM relay_position) AND resend_of IS NULL
      AND NOT EXISTS (SELECT FROM outbox_state AS s WHERE s.outbox_id = o.id)
    LIMIT {CAP} + 1
) AS waiting"""

# -- published --
# Of the newest rows at or below the floor those whose fate has not begun: what the workers have before them.
PUBLISHED = f"""
SELECT count(*)
FROM (
    SELECT id FROM outbox
    WHERE id <= (SELECT coalesce(max(floor), 0) FROM relay_position) AND resend_of IS NULL
    ORDER BY id DESC
    LIMIT {CAP} + 1
) AS newest
WHERE NOT EXISTS (SELECT FROM outbox_state AS s WHERE s.outbox_id = newest.id)"""

# -- open --
# What waits for another try, ours and other systems' messages, by the partial indexes on open rows.
OPEN = """
SELECT count(*) FILTER (WHERE status = 'retrying'), count(*) FILTER (WHERE status = 'parked')
FROM (
    SELECT status FROM outbox_state WHERE topic IS NOT NULL
    UNION ALL
    SELECT status FROM outbox_foreign WHERE open
) AS open_messages"""

# -- dead --
DEAD = """
SELECT (SELECT count(*) FROM outbox_state WHERE status = 'dead') +
       (SELECT count(*) FROM outbox_foreign WHERE status = 'dead')"""


def relays(connection: Connection, running: Sequence[int | None]) -> list[dict[str, Any]]:
    """Each relay that leads, then those that run here without leading; a relay nobody leads still shows its lag."""
    found = []
    leaders: set[int | None] = set()
    mode = "auto"
    for mode, pid, leads, rows, seconds in connection.exec_driver_sql(RELAYS):
        leaders.add(pid if leads else None)
        lag = {"lag_rows": rows, "lag_seconds": round(seconds, 3)}
        found.append({"pid": pid if leads else None, "mode": mode, "leader": leads, **lag})
    standby = {"mode": mode, "leader": False, "lag_rows": None, "lag_seconds": None}
    return found + [{"pid": pid, **standby} for pid in running if pid is not None and pid not in leaders]


def messages(connection: Connection) -> dict[str, int]:
    """How many messages are where; pending and published say CAP + 1 when there are more."""
    retrying, parked = connection.exec_driver_sql(OPEN).one()
    return {
        "pending": connection.exec_driver_sql(PENDING).scalar_one(),
        "published": connection.exec_driver_sql(PUBLISHED).scalar_one(),
        "retrying": retrying,
        "parked": parked,
        "dead": connection.exec_driver_sql(DEAD).scalar_one(),
    }
