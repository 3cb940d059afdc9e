"""The replication slot made, dropped and spared; what cannot be done says what mends it."""

from __future__ import annotations

import logging
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from streams.database import query
from streams.database.refusals import words
from streams.database.replication import create_slot
from streams.errors import UsageError
from streams.relay.postgres.snapshot import RelaySnapshot

logger = logging.getLogger("streams.relay")


class SlotBusy(Exception):
    """The slot is read by somebody, or the server has not noticed yet that it no longer is."""


async def make(connection: psycopg.AsyncConnection[Any], look: RelaySnapshot) -> None:
    """A slot that can be read is there; waits for every transaction that is writing now.

    UsageError when it may not be made, SlotBusy when a lost one is still held.
    """
    if look.slot is not None and look.slot.wal_status != "lost":
        return
    if look.slot is not None:
        await drop(connection, look.relay)
    await _change(
        connection,
        create_slot(connection.info.server_version),
        look.relay,
        "make",
        "SELECT pg_create_logical_replication_slot('{}', 'pgoutput')",
    )


async def let_fail_over(connection: psycopg.AsyncConnection[Any], look: RelaySnapshot) -> None:
    """A slot that nobody reads goes along in a failover from now on.

    `connection` is one for replication.
    """
    if look.slot is None or look.slot.failover is not False or look.slot.pid is not None:
        return
    alter = sql.SQL("ALTER_REPLICATION_SLOT {} (FAILOVER true)").format(sql.Identifier(look.relay))
    try:
        await connection.execute(alter)
    except psycopg.Error as error:  # a slot that stays behind is healed, as before PostgreSQL 17
        extra = {"relay": look.relay, "sqlstate": error.sqlstate, "error": words(error)}
        logger.warning("slot cannot fail over", extra=extra)
    else:
        logger.info("slot can fail over", extra={"relay": look.relay})


async def drop(connection: psycopg.AsyncConnection[Any], name: str) -> None:
    """The slot is gone, and with it what it held back.

    SlotBusy while it is read, UsageError when it may not be dropped.
    """
    await _change(
        connection, query("drop_slot"), name, "drop", "SELECT pg_drop_replication_slot('{}')"
    )


async def _change(
    connection: psycopg.AsyncConnection[Any],
    statement: LiteralString,
    name: str,
    verb: str,
    by_hand: str,
) -> None:
    try:
        await connection.execute(statement, {"slot": name})
    except psycopg.errors.ObjectInUse as error:
        raise SlotBusy(words(error)) from None
    except psycopg.errors.UndefinedObject:
        return  # somebody else dropped it
    except psycopg.errors.DuplicateObject:
        return  # somebody else made it
    except psycopg.errors.InsufficientPrivilege:
        role = connection.info.user
        raise UsageError(
            f"role {role} may not {verb} replication slot {name}: run ALTER ROLE {role}"
            f" REPLICATION, or, as a role that may, {by_hand.format(name)}"
        ) from None
    except psycopg.errors.ConfigurationLimitExceeded:
        raise UsageError(
            f"replication slot {name} cannot be made, all max_replication_slots are in use:"
            " drop one that nobody reads (pg_replication_slots), or raise the setting and restart"
            " PostgreSQL"
        ) from None
