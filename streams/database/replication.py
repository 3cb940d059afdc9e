"""The publication and the slot that logical decoding needs: publication first, then slot.

PostgreSQL 18 skips rows with no more than a server warning when a slot is older than the
publication it is read with.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import LiteralString

from psycopg import sql
from sqlalchemy import Connection

from streams.database.lock_waits import LockWaits
from streams.database.queries import query
from streams.errors import UsageError

FAILOVER_SLOTS = 17_00_00  # the first version of PostgreSQL that has them


def create_slot(version: int) -> LiteralString:
    """The statement that makes a slot on a server of this version.

    The slot may fail over, where there is such a thing.
    """
    return query("create_failover_slot" if version >= FAILOVER_SLOTS else "create_slot")


def other_outbox(publication: str, schema: str) -> str:
    """What to say where a publication is that of another outbox in this database."""
    return (
        f"publication {publication} is that of the outbox in schema {schema}: set relay.publication"
        " and relay.name to names of their own, and run `streams migrate`"
    )


def refuse_shared_slot(connection: Connection, slot: str) -> None:
    """UsageError when the relay of another outbox in this database reads the slot of this name.

    A slot says which database it is of, not which schema: whoever reads it takes it on for all.
    Where relays of both have read it, it is the other's if that one did so last.
    """
    for schema in connection.exec_driver_sql(query("other_outboxes")).scalars().all():
        # The name of a table is no parameter.
        taken = sql.SQL(
            "SELECT EXISTS (SELECT FROM {} AS theirs WHERE name = %(slot)s"
            " AND mode IN ('cdc', 'debezium') AND NOT EXISTS ("
            " SELECT FROM relay_position AS ours WHERE ours.name = theirs.name"
            " AND ours.mode IN ('cdc', 'debezium')"
            " AND coalesce(ours.heartbeat, '-infinity') >= coalesce(theirs.heartbeat, '-infinity')"
            "))"
        ).format(sql.Identifier(schema, "relay_position"))
        if connection.exec_driver_sql(taken.as_string(), {"slot": slot}).scalar_one():
            raise UsageError(
                f"relay.name {slot}, and the replication slot of that name, are those of the outbox"
                f" in schema {schema}: set relay.name to a name of its own, and run"
                " `streams migrate`; if that relay has another name now, drop the slot, and DELETE"
                f" FROM {schema}.relay_position WHERE name = '{slot}'"
            )


def prepare(connection: Connection, waits: LockWaits, publication: str, slot: str) -> Iterator[str]:
    """Create what is missing; yields one line for each step.

    Without `wal_level=logical` only the publication is made.
    """
    there = (
        connection.exec_driver_sql(query("publication"), {"publication": publication})
        .mappings()
        .first()
    )
    if there is not None and there["other_outbox"]:
        raise UsageError(other_outbox(publication, there["other_outbox"]))
    refuse_shared_slot(connection, slot)
    if there is None:
        create = sql.SQL(
            "CREATE PUBLICATION {} FOR TABLE outbox WITH (publish = 'insert',"
            " publish_via_partition_root = true)"
        ).format(sql.Identifier(publication))
        connection.commit()
        yield from waits.run(
            f"publication {publication}",
            lambda: connection.exec_driver_sql(create.as_string()),
            in_the_way=False,
        )
        yield f"publication {publication} created"
    connection.commit()
    level = connection.exec_driver_sql("SHOW wal_level").scalar_one()
    if level != "logical":
        yield f"no replication slot: wal_level is {level}, and relay mode cdc needs logical"
        return
    if connection.exec_driver_sql(query("relay_wish"), {"relay": slot}).scalar() == "poll":
        yield f"no replication slot: relay {slot} was switched to poll"
        return
    slot_row = connection.exec_driver_sql(query("slot"), {"slot": slot}).mappings().first()
    if slot_row is not None and not slot_row["here"]:
        database = connection.exec_driver_sql(query("slot_database"), {"slot": slot}).scalar()
        whose = f"database {database}" if database else "physical replication"
        yield (
            f"no replication slot: {slot} is the slot of {whose}: set relay.name to one that nobody"
            " has, and migrate again"
        )
        return
    if slot_row is not None and slot_row["failover"] is False:
        yield (
            f"replication slot {slot} is no failover slot: a relay in mode cdc makes it one when it"
            " begins to stream"
        )
    if slot_row is None:
        # Waits for every transaction that is writing now, so it belongs to the deployment and not
        # to the relay's start.
        version = connection.exec_driver_sql("SHOW server_version_num").scalar_one()
        connection.commit()
        yield from waits.run(
            f"replication slot {slot}",
            lambda: connection.exec_driver_sql(create_slot(int(version)), {"slot": slot}),
            in_the_way=False,
        )
        if not connection.exec_driver_sql(query("outbox_writers")).first():
            connection.exec_driver_sql(
                query("slot_begins"), {"slot": slot, "publication": publication}
            )
        yield f"replication slot {slot} created"
    connection.commit()
