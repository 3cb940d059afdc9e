"""The publication and the slot that logical decoding needs: publication first, then slot.

PostgreSQL 18 skips rows with no more than a server warning when a slot is older than the publication it is read with.
"""

from __future__ import annotations

from collections.abc import Iterator

from psycopg import sql
from sqlalchemy import Connection

from db.queries import query


def prepare(connection: Connection, publication: str, slot: str) -> Iterator[str]:
    """Create what is missing; yields one line a step.  Without `wal_level=logical` only the publication is made."""
    if not connection.exec_driver_sql(query("publication"), {"publication": publication}).first():
        create = sql.SQL(
            "CREATE PUBLICATION {} FOR TABLE outbox WITH (publish = 'insert', publish_via_partition_root = true)"
        ).format(sql.Identifier(publication))
        connection.exec_driver_sql(create.as_string())
        yield f"publication {publication} created"
    connection.commit()
    level = connection.exec_driver_sql("SHOW wal_level").scalar_one()
    if level != "logical":
        yield f"no replication slot: wal_level is {level}, and relay mode cdc needs logical"
        return
    if connection.exec_driver_sql(query("relay_wish"), {"relay": slot}).scalar() == "poll":
        yield f"no replication slot: relay {slot} was switched to poll"
        return
    if not connection.exec_driver_sql(query("slot"), {"slot": slot}).first():
        # Waits for every transaction that is writing now, so it belongs to the deployment and not to the relay's start.
        connection.exec_driver_sql(query("create_slot"), {"slot": slot})
        if not connection.exec_driver_sql(query("outbox_writers")).first():
            connection.exec_driver_sql(query("slot_begins"), {"slot": slot, "publication": publication})
        yield f"replication slot {slot} created"
    connection.commit()
