"""Where the messages are and how far behind the relays are, from queries whose cost does not grow with the tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from streams.operate.relay_status import RelayStatus

CAP = 10_000

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


def relays(found: Sequence[RelayStatus], running: Sequence[int | None]) -> list[dict[str, Any]]:
    """Each relay, led or not, others that share its work, then those that stand by: known to the database, or running here."""
    shown, mode = [], "auto"
    leaders: set[int | None] = {None}
    for each in found:
        pid, mode = each.leader.pid if each.leader else None, each.mode or mode
        leaders.add(pid)
        lag = {"lag_rows": each.lag.rows, "lag_seconds": each.lag.seconds}
        shown.append({"pid": pid, "mode": mode, "leader": pid is not None, **lag})
        for other in each.sharing:
            if other.pid not in leaders:
                leaders.add(other.pid)
                shown.append({"pid": other.pid, "mode": mode, "leader": True, "lag_rows": None, "lag_seconds": None})
    waiting = dict.fromkeys([*(one.pid for each in found for one in each.standbys), *running])
    standby = {"mode": mode, "leader": False, "lag_rows": None, "lag_seconds": None}
    return shown + [{"pid": pid, **standby} for pid in waiting if pid not in leaders]


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
