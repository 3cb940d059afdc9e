"""What a leader has to know of its database: the slot, what was saved, which database it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from streams.database import query
from streams.relay.postgres.lsn import lsn_number


@dataclass(frozen=True, slots=True)
class Slot:
    """A replication slot; `held` bytes of WAL are kept for it.

    `confirmed` is None while it is being made, `failover` where PostgreSQL has no such slots.

    `failover` where PostgreSQL has no such slots.
    """

    plugin: str | None
    here: bool
    pid: int | None
    wal_status: str | None
    confirmed: int | None
    held: int
    failover: bool | None = None

    @property
    def ours(self) -> bool:
        """Whether a relay could have made it."""
        return self.plugin == "pgoutput" and self.here


@dataclass(frozen=True, slots=True)
class RelaySnapshot:
    """The slot of this relay, and its saved position.

    Every row up to `floor`, and every one committed before `lsn`, is with the broker; the log was
    read with the publication as in `read_with`. `led` when a relay of this name ever led; `newest`
    is the newest id drawn.
    """

    relay: str
    slot: Slot | None
    floor: int
    lsn: int | None
    led: bool
    mode: str | None
    asked: str | None
    wish: str | None
    known_as: str | None
    identity: str
    newest: int
    read_with: str | None
    publication: str | None


async def read_snapshot(
    connection: psycopg.AsyncConnection[Any], relay: str, publication: str
) -> RelaySnapshot:
    """Read it once."""
    # The slot first: what is confirmed to it was saved before, so it never seems to be ahead of
    # that.
    slot = await (await connection.execute(query("slot"), {"slot": relay})).fetchone()
    names = {"relay": relay, "publication": publication}
    saved = await (await connection.execute(query("relay_saved"), names)).fetchone()
    assert saved is not None
    floor, lsn, led, mode, asked, wish, known_as, identity, newest, read_with, mark = saved
    return RelaySnapshot(
        relay=relay,
        slot=_slot(slot) if slot else None,
        floor=floor,
        lsn=lsn_number(lsn) if lsn else None,
        led=led,
        mode=mode,
        asked=asked,
        wish=wish,
        known_as=known_as,
        identity=identity,
        newest=newest,
        read_with=read_with,
        publication=mark,
    )


async def reader(connection: psycopg.AsyncConnection[Any], relay: str) -> str | None:
    """One line about who reads the slot; None when nobody does."""
    row = await (await connection.execute(query("slot_reader"), {"slot": relay})).fetchone()
    if row is None or row[0] is None:
        return None
    return (
        f"replication slot {relay} is read by pid {row[0]} ({row[1] or 'unknown'}), which is not"
        f" the leader of relay {relay}: stop it, or set relay.name to a name of its own"
    )


def _slot(row: tuple[Any, ...]) -> Slot:
    plugin, here, pid, wal_status, confirmed, held, _, failover = row
    return Slot(
        plugin,
        bool(here),
        pid,
        wal_status,
        lsn_number(confirmed) if confirmed else None,
        held or 0,
        failover,
    )
