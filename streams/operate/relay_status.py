"""How relays stand: who leads, what they do, how far they are, what their slot holds back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from streams.database import query

# A leader writes its heartbeat every other second.
SILENT_SECONDS = 10.0

GROWING = ("silent", "retention_idle")
"""What of a row is a time since: it grows while nobody writes."""

_MEMBER = re.compile(r"outbox-streams relay (\w+) (\d+)@(.*)")


@dataclass(frozen=True, slots=True)
class Member:
    """One relay process: the mode it was started with, and where it runs.

    The host is cut at what PostgreSQL keeps of it. `shards` are those it leads, where relays share
    the work.
    """

    pid: int
    host: str
    mode: str | None
    shards: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Lag:
    """How far behind a relay is.

    In log bytes (None where no log is read), in ids drawn since the floor, and as the age of the
    oldest row above it.
    """

    bytes: int | None
    rows: int
    seconds: float


@dataclass(frozen=True, slots=True)
class SlotHealth:
    """The relay's replication slot.

    `safe_bytes` more may be written before it is lost (None: no limit).
    """

    wal_status: str | None
    active: bool
    held_bytes: int
    safe_bytes: int | None


@dataclass(frozen=True, slots=True)
class RelayStatus:
    """One relay name, and how it stands.

    `mode` publishes now, `asked` is what the leader was started with, `wish` what operators asked
    for later; `doing` is streaming, polling, healing, connector or waiting. `strange`: this is not
    the database it knows. `sharing` are relays that lead some shards each; the `leader` is the one
    with the first. `retention` is what holds retention up, as the leader saw it last,
    `retention_idle` seconds ago; None: it never looked.
    """

    name: str
    mode: str | None
    asked: str | None
    wish: str | None
    doing: str | None
    reason: str | None
    leader: Member | None
    silent_seconds: float | None
    sharing: tuple[Member, ...]
    standbys: tuple[Member, ...]
    floor: int
    position: str | None
    lag: Lag
    rate: float
    slot: SlotHealth | None
    strange: bool
    retention: tuple[str, ...] = ()
    retention_idle: float | None = field(default=None, compare=False)


def standing(connection: Connection, relay: str | None = None) -> list[RelayStatus]:
    """How this relay stands, or each that ever had a leader or a slot of its own."""
    rows = connection.exec_driver_sql(query("relays_standing"), {"relay": relay}).mappings().all()
    return [
        _standing(
            dict(row) | {"lag_seconds": _lag_seconds(connection, row["floor"], row["newest"])},
            _sharing(connection, row["name"]),
            _attendance(connection, row["name"]),
        )
        for row in rows
    ]


def from_rows(
    rows: Iterable[Mapping[str, Any]],
    sharing: Mapping[str, Iterable[Sequence[Any]]],
    attendance: Mapping[str, Iterable[str]],
    passed: float,
) -> list[RelayStatus]:
    """How relays stand, by the same rows that a leader wrote down so many seconds ago.

    Read where the primary cannot be asked. Whoever led then and has written nothing since leads no
    more.
    """
    return [
        _standing(
            dict(row) | {name: row[name] + passed for name in GROWING if row.get(name) is not None},
            _sharers(sharing.get(row["name"], ())),
            _present(attendance.get(row["name"], ())),
        )
        for row in rows
    ]


def _standing(row: dict[str, Any], sharing: list[Member], present: list[Member]) -> RelayStatus:
    fresh = row["silent"] is not None and row["silent"] < SILENT_SECONDS
    leader = None
    if row["pid"] is not None and fresh:
        leader = Member(row["pid"], (row["leader"] or "").rpartition(":")[0], row["asked"])
    slot = None
    if row["wal_status"] is not None or row["held"] is not None:
        slot = SlotHealth(
            row["wal_status"], row["slot_active"], row["held"] or 0, row["safe_wal_size"]
        )
    return RelayStatus(
        **{
            key: row[key]
            for key in (
                "name",
                "mode",
                "asked",
                "wish",
                "doing",
                "reason",
                "floor",
                "position",
                "rate",
            )
        },
        leader=leader,
        silent_seconds=row["silent"],
        sharing=tuple(sharing),
        standbys=tuple(
            each for each in present if not any(_same(each, other) for other in (leader, *sharing))
        ),
        lag=Lag(row["lag_bytes"], row["lag_rows"], round(row["lag_seconds"], 3)),
        slot=slot,
        strange=row["strange"],
        retention=tuple(row.get("retention") or ()),
        retention_idle=row.get("retention_idle"),
    )


def _lag_seconds(connection: Connection, floor: int, newest: int) -> float:
    bounds = {"floor": floor, "newest": newest}
    return float(
        connection.exec_driver_sql(query("oldest_above"), bounds).scalar_one_or_none() or 0.0
    )


def _sharing(connection: Connection, relay: str) -> list[Member]:
    return _sharers(connection.exec_driver_sql(query("relay_sharing"), {"relay": relay}))


def _sharers(rows: Iterable[Sequence[Any]]) -> list[Member]:
    return [
        Member(pid, (leader or "").rpartition(":")[0], "poll", tuple(shards))
        for pid, leader, shards in rows
    ]


def _attendance(connection: Connection, relay: str) -> list[Member]:
    return _present(
        connection.exec_driver_sql(query("relay_attendance"), {"relay": relay}).scalars()
    )


def _present(names: Iterable[str]) -> list[Member]:
    matches = (_MEMBER.fullmatch(name) for name in names)
    return [Member(int(match[2]), match[3], match[1]) for match in matches if match]


def _same(member: Member, other: Member | None) -> bool:
    return other is not None and member.pid == other.pid and other.host.startswith(member.host)
