"""Read one snapshot of a deployment: every number in one transaction, so that they fit each other.

Tables only; what the primary or Kafka alone can tell is asked where this is the primary, and
otherwise read as the leader wrote it down. Takes a synchronous connection that is in no
transaction; from async code, `await connection.run_sync(...)`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from streams.database import query
from streams.database.partitions import first_sync, nearest_first, reach_sync
from streams.envelope import DELETED
from streams.figures import histogram
from streams.message_id import name_of
from streams.operate.dead_letters import Tries, tries_of
from streams.operate.relay_status import SILENT_SECONDS, RelayStatus, from_rows, standing
from streams.operate.snapshot import (
    MOST,
    Broker,
    Cause,
    Count,
    Deleted,
    Gap,
    Head,
    Latency,
    Limits,
    Partition,
    Pin,
    Process,
    Proof,
    Rate,
    Room,
    Snapshot,
    TopicLimit,
    Totals,
    Trend,
    UnknownBizType,
)

ALIVE_SECONDS = 10.0
GONE_SECONDS = 60.0
RATE_SECONDS = 60
FAILING_SECONDS = 600
PIN_SECONDS = 60.0
IDS = 20_000
"""Ids looked at for published messages, at most."""
REMEMBERED_SECONDS = 10.0
FEW_ATTEMPTS = 3
SHOWN = 10
CAUSES = 200
AMONG = 20
"""Messages looked at for each conversation that is to be shown, before all of them are."""


@dataclass(frozen=True, slots=True)
class Moment:
    """When a database was looked at: `at` is `behind` seconds ago.

    Of a replica that is the moment that it shows. `read_only`: its sessions begin so.
    """

    at: datetime
    database: str
    replica: bool
    read_only: bool
    behind: float


# How many are dead, how many of them hold their conversation, and the place of whoever died last.
Signature = tuple[int, int, int]


@dataclass
class Memory:
    """The causes that were found last, for whoever looks again and again at one deployment.

    Grouping 200,000 dead letters takes ten times as long as counting them, and nearly always the
    same ones are dead as a second ago.
    """

    causes: dict[tuple[int, bool], tuple[Signature, float, tuple[Cause, ...]]] = field(
        default_factory=dict
    )


def look(
    connection: Connection,
    limits: Limits | None = None,
    *,
    projection: str = "main",
    broker: Broker | None = None,
    gone_back: str | None = None,
    memory: Memory | None = None,
) -> Snapshot:
    """Look at everything at one moment.

    `broker` and `gone_back` are what the caller asked Kafka, if it did.
    """
    limits = limits or Limits()
    with connection.begin():
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        now = moment(connection)
        at, replica = now.at, now.replica
        rejected = {"at": at, "deleted": DELETED}
        primary = primary_of(connection)
        relays, relays_at = _relays(connection, replica, primary, at)
        processes = processes_of(connection, GONE_SECONDS, at)
        partitions = partitions_of(connection, processes, at, limits.group)
        proved = proof(connection)
        signature = _signature(connection)
        totals, ending, unknown, unserved, held_since, recent_dead, usual_dead = _totals(
            connection, limits, projection, _settled(primary), signature, at
        )
        return Snapshot(
            at=at,
            database=now.database,
            replica=replica,
            behind=now.behind,
            read_only=now.read_only,
            projection=projection,
            limits=limits,
            totals=totals,
            gaps=_gaps(totals, relays, partitions, at),
            rates=rates(connection, at, projection=projection),
            failing=rates(connection, at, projection=projection, seconds=FAILING_SECONDS),
            latency=latency(connection, at, projection=projection),
            relays=relays,
            relays_at=relays_at,
            processes=processes,
            partitions=partitions,
            waiting=heads(connection, limit=SHOWN),
            causes=_remembered(connection, CAUSES, False, memory, signature),
            proof=proved,
            first_message_at=None if proved else enqueued_first(connection, None),
            pins=_pins(connection, replica, primary, at),
            unknown=_unknown(connection) if unknown else (),
            room=_room(connection),
            retention=_retention(primary),
            unsent=_unsent(primary, at),
            trends={
                name: Trend(*rest)
                for name, *rest in connection.exec_driver_sql(query("look_trends"), {"at": at})
            },
            rejects=connection.exec_driver_sql(query("look_rejects"), rejected).scalar_one(),
            unserved=unserved,
            deleted=tuple(
                Deleted(*row) for row in connection.exec_driver_sql(query("look_deleted"), rejected)
            ),
            recent_dead=recent_dead,
            usual_dead=usual_dead,
            ending=ending,
            held_since=held_since,
            broker=broker,
            gone_back=gone_back,
            crashed=tuple(
                (where, count)
                for where, count in connection.exec_driver_sql(query("look_crashed"), {"at": at})
            ),
        )


def moment(connection: Connection) -> Moment:
    """Which moment this database shows: of a replica, that of its last replay."""
    at, database, replica, read_only, behind = connection.exec_driver_sql(
        query("look_moment")
    ).one()
    return Moment(at, database, replica, bool(read_only), behind)


def causes(
    connection: Connection,
    *,
    fingerprint: str | None = None,
    limit: int = 50,
    sparklines: bool = False,
    memory: Memory | None = None,
) -> tuple[Cause, ...]:
    """Dead messages by cause, the one that somebody died of last first.

    With `sparklines`, when in the last day. Those in `memory` are given again for some seconds,
    unless the dead messages are others since.
    """
    if fingerprint is not None:
        return _causes(connection, fingerprint, limit, sparklines)
    return _remembered(connection, limit, sparklines, memory, _signature(connection))


def _signature(connection: Connection) -> Signature:
    dead, held, newest = connection.exec_driver_sql(query("dead_signature")).one()
    return dead, held, newest


def _remembered(
    connection: Connection,
    limit: int,
    sparklines: bool,
    memory: Memory | None,
    signature: Signature,
) -> tuple[Cause, ...]:
    if memory is None:
        return _causes(connection, None, limit, sparklines)
    before, at, remembered = memory.causes.get((limit, sparklines), (None, 0.0, ()))
    if signature == before and time.monotonic() - at < REMEMBERED_SECONDS:
        return remembered
    current = _causes(connection, None, limit, sparklines)
    memory.causes[limit, sparklines] = (signature, time.monotonic(), current)
    return current


def _causes(
    connection: Connection, fingerprint: str | None, limit: int, sparklines: bool
) -> tuple[Cause, ...]:
    parameters = {"fingerprint": fingerprint, "limit": limit}
    rows = connection.exec_driver_sql(query("look_causes"), parameters).all()
    tries = tries_of(connection, (name_of(*row[-2:]) for row in rows))
    lines = _sparklines(connection, [row[0] for row in rows]) if sparklines and rows else {}
    return tuple(_cause(tries[name_of(*row[-2:])], *row, lines.get(row[0], ())) for row in rows)


def heads(
    connection: Connection,
    *,
    topic: str | None = None,
    key: str | None = None,
    held: bool = False,
    limit: int = 50,
) -> tuple[Head, ...]:
    """Conversations that wait, the longest first; `held`: only those that a dead message holds."""
    parameters = {"topic": topic, "key": key, "held": held, "limit": limit}

    def among(messages: int | None) -> Sequence[Sequence[Any]]:
        return connection.exec_driver_sql(
            query("look_heads"), parameters | {"among": messages}
        ).all()

    # One conversation has an index. Where few have all the messages, all are looked at after all.
    rows = among(None if key is not None else AMONG * limit)
    if rows and len(rows) < limit and key is None:
        rows = among(None)
    return tuple(_head(*row) for row in rows)


def enqueued_first(connection: Connection, after: int | None) -> datetime | None:
    """When the first message above this id was enqueued, or the first of all; None without one."""
    begin = first_sync(connection) - 1 if after is None else after
    return _enqueued(connection, "look_enqueued_first", begin, max(begin, _last_id(connection)))


def processes_of(
    connection: Connection, seconds: float, at: datetime, limit: int = 1000
) -> tuple[Process, ...]:
    """Lives of processes with a sign of life in so many seconds before `at`, the newest first."""
    parameters = {"seconds": seconds, "at": at, "limit": limit}
    rows = connection.exec_driver_sql(query("look_processes"), parameters).mappings()
    return tuple(_process(dict(row)) for row in rows)


def partitions_of(
    connection: Connection, processes: Sequence[Process], at: datetime, group: str | None
) -> tuple[Partition, ...]:
    """How far the group is in each partition, and which living worker of it has it."""
    owners = {
        (process.name, topic, number): process.id
        for process in reversed(processes)
        if process.kind == "worker" and process.state in ("alive", "silent")
        for topic, numbers in process.partitions.items()
        for number in numbers
    }
    rows = connection.exec_driver_sql(query("look_lag"), {"at": at, "group": group})
    return tuple(_partition(owners, *row) for row in rows)


def rates(
    connection: Connection, at: datetime, *, projection: str = "main", seconds: int = RATE_SECONDS
) -> tuple[Rate, ...]:
    """What happened a second to messages of each biz_type, over so many seconds before `at`."""
    parameters = {"projection": projection, "seconds": seconds, "at": at}
    return tuple(
        Rate(biz_type, *(count / seconds for count in counts))
        for biz_type, *counts in connection.exec_driver_sql(query("look_rates"), parameters)
    )


def latency(
    connection: Connection,
    at: datetime,
    *,
    projection: str = "main",
    biz_type: str | None = None,
    seconds: int = RATE_SECONDS,
) -> Latency:
    """From enqueueing to persisting, over so many seconds before `at`."""
    parameters = {
        "at": at,
        "projection": projection,
        "biz_type": biz_type,
        "seconds": seconds,
        "bounds": histogram.VERSION,
    }
    rows = connection.exec_driver_sql(query("look_latency"), parameters).scalars()
    return latency_of(histogram.total(rows))


def latency_of(counts: Sequence[int]) -> Latency:
    """What a histogram says."""
    return Latency(
        sum(counts),
        histogram.quantile(counts, 0.5),
        histogram.quantile(counts, 0.95),
        histogram.quantile(counts, 0.99),
    )


def proof(connection: Connection) -> Proof | None:
    """What the newest audit found; None before the first."""
    row = connection.exec_driver_sql(query("look_proof")).first()
    if row is None:
        return None
    number, at, complete, messages, wrong, missing, doubled, until, left = row
    under_way = _newer(connection, until) + left
    return Proof(
        id=number,
        at=at,
        complete=complete,
        messages=messages,
        wrong=wrong,
        missing=missing,
        doubled=doubled,
        until_id=until,
        until=_enqueued(connection, "look_enqueued_last", until, 0),
        under_way=_count(under_way),
    )


def _newer(connection: Connection, after: int) -> int:
    """How many messages came after this id, at most one more than are counted."""
    count = 0
    for lower, upper in nearest_first(after, max(after, _last_id(connection))):
        asked = {"after": lower, "until": upper, "most": MOST + 1 - count}
        count += connection.exec_driver_sql(query("look_newer"), asked).scalar_one()
        if count > MOST:
            break
    return count


def _enqueued(connection: Connection, name: str, begin: int, end: int) -> datetime | None:
    """When the message that this query finds closest to `begin` was enqueued."""
    for after, until in nearest_first(begin, end):
        asked = {"after": after, "until": until}
        at: datetime | None = connection.exec_driver_sql(query(name), asked).scalar()
        if at is not None:
            return at
    return None


def _last_id(connection: Connection) -> int:
    newest: int = connection.exec_driver_sql(query("last_id")).scalar_one()
    return newest


def primary_of(connection: Connection) -> Mapping[str, tuple[datetime, Mapping[str, Any]]]:
    """What each relay's leader wrote down last: when, and what it saw."""
    rows = connection.exec_driver_sql(query("look_primary"))
    return {relay: (at, seen) for relay, at, seen in rows}


def _relays(
    connection: Connection,
    replica: bool,
    primary: Mapping[str, tuple[datetime, Mapping[str, Any]]],
    at: datetime,
) -> tuple[tuple[RelayStatus, ...], datetime]:
    if not replica:
        return tuple(standing(connection)), at
    relays: list[RelayStatus] = []
    for wrote, seen in primary.values():
        passed = max(0.0, (at - wrote).total_seconds())
        rows, sharing = seen.get("relays", ()), seen.get("sharing", {})
        attendance = seen.get("attendance", {})
        if passed >= SILENT_SECONDS:
            # Whoever led then leads no more, and nobody else wrote this down again. Its floor has
            # stayed, so that tables say what waits above it.
            rows = [{**row, **_above(connection, row["floor"], at)} for row in rows]
            sharing = attendance = {}
        relays += from_rows(rows, sharing, attendance, passed)
    return tuple(relays), min((wrote for wrote, _ in primary.values()), default=at)


def _above(connection: Connection, floor: int, at: datetime) -> dict[str, Any]:
    """How many ids were drawn above a floor, and the age of the oldest row there."""
    first = enqueued_first(connection, floor)
    age = 0.0 if first is None else max(0.0, (at - first).total_seconds())
    return {"lag_rows": max(0, _last_id(connection) - floor), "lag_seconds": age}


def _totals(
    connection: Connection,
    limits: Limits,
    projection: str,
    settled: int,
    signature: Signature,
    at: datetime,
) -> tuple[Totals, int, int, tuple[tuple[str, int], ...], datetime | None, int, float]:
    floor: int = connection.exec_driver_sql(query("look_floor")).scalar_one()
    # The floor is given to each statement, so that it opens the partitions of these ids only.
    pending, first_pending = connection.exec_driver_sql(
        query("look_pending"), {"floor": floor, "most": MOST}
    ).one()
    after = max(settled, floor - IDS)
    published, first_published = connection.exec_driver_sql(
        query("look_published"), {"after": after, "floor": floor}
    ).one()
    waiting = connection.exec_driver_sql(
        query("look_open"), {"attempts": limits.max_attempts - FEW_ATTEMPTS, "at": at}
    ).all()
    retrying, parked, replaying, ending, unknown = (
        sum(row[column] for row in waiting) for column in range(1, 6)
    )
    unserved = tuple((row[0], row[1] + row[2] + row[3]) for row in waiting if row[6])
    held_since, recent, usual = connection.exec_driver_sql(
        query("look_dead"), {"projection": projection, "at": at}
    ).one()
    oldest = min(filter(None, (first_pending, first_published)), default=None)
    totals = Totals(
        pending=_count(pending),
        published=Count(min(published, MOST), more=published > MOST or after > settled),
        retrying=retrying,
        parked=parked,
        replaying=replaying,
        held=signature[1],
        dead=signature[0],
        oldest=oldest,
    )
    return totals, ending, unknown, unserved, held_since, recent, usual


def _unknown(connection: Connection) -> tuple[UnknownBizType, ...]:
    rows = connection.exec_driver_sql(query("unknown_biz_types"))
    return tuple(UnknownBizType(*row) for row in rows)


def _gaps(
    totals: Totals, relays: Sequence[RelayStatus], partitions: Sequence[Partition], at: datetime
) -> tuple[Gap, ...]:
    """What waits before each step.

    The relay's rows are ids drawn, of messages that rolled back too.
    """
    behind = max((relay.lag.seconds for relay in relays), default=None)
    lag = sum(partition.lag or 0 for partition in partitions)
    waited = (at - totals.oldest).total_seconds() if totals.oldest is not None else 0.0
    return (
        Gap("relay", totals.pending, behind),
        Gap("workers", Count(lag), _topic_seconds(partitions, at) if lag else 0.0),
        Gap("rows", totals.published, max(0.0, waited)),
    )


def _topic_seconds(partitions: Sequence[Partition], at: datetime) -> float | None:
    """An upper bound: the time of the last record worked, of the partitions with lag."""
    worked = [partition.worked for partition in partitions if partition.lag]
    if not worked or None in worked:
        return None
    return max(0.0, max((at - moment).total_seconds() for moment in worked if moment is not None))


def _cause(tries: Tries, *row: Any) -> Cause:
    name, biz_type, code, messages, conversations, held, first, last, *example, line = row
    source, outbox_id = example
    return Cause(
        fingerprint=name,
        biz_type=biz_type,
        error_code=code,
        messages=messages,
        conversations=conversations,
        held=held,
        first=first,
        last=last,
        example=name_of(source, outbox_id),
        error=tries.error,
        sparkline=line,
    )


def _head(*row: Any) -> Head:
    source, topic, key, outbox_id, status, code, since, due, behind, attempts, partition = row
    return Head(
        source=source,
        topic=topic,
        key=key,
        head=name_of(source, outbox_id),
        status=status,
        error_code=code,
        since=since,
        due=due,
        behind=behind,
        attempts=attempts,
        partition=partition,
    )


def _partition(owners: Mapping[tuple[str, str, int], str], *row: Any) -> Partition:
    group, topic, number, committed, end, log_start, moved, at, worked = row
    return Partition(
        group=group,
        topic=topic,
        partition=number,
        committed=committed,
        end=end,
        log_start=log_start,
        moved=moved,
        at=at,
        worked=worked,
        owner=owners.get((group, topic, number)),
    )


def _process(row: dict[str, Any]) -> Process:
    silent = row["silent"]
    if row["ended"] is not None:
        state = "ended"
    elif silent < ALIVE_SECONDS:
        state = "alive"
    else:
        state = "silent" if silent < GONE_SECONDS else "gone"
    partitions = {topic: tuple(numbers) for topic, numbers in row["partitions"].items()}
    return Process(**row | {"state": state, "partitions": partitions})


def _sparklines(connection: Connection, fingerprints: list[str]) -> dict[str, tuple[int, ...]]:
    parameters = {"fingerprints": fingerprints, "now": moment(connection).at}
    lines = {fingerprint: [0] * 24 for fingerprint in fingerprints}
    for fingerprint, ago, count in connection.exec_driver_sql(query("look_sparklines"), parameters):
        lines[fingerprint][23 - min(23, max(0, ago))] += count
    return {fingerprint: tuple(line) for fingerprint, line in lines.items()}


def _pins(
    connection: Connection,
    replica: bool,
    primary: Mapping[str, tuple[datetime, Mapping[str, Any]]],
    at: datetime,
) -> tuple[Pin, ...]:
    if not replica:
        rows = connection.exec_driver_sql(query("outbox_pins"), {"seconds": PIN_SECONDS})
        return tuple(
            Pin(pid, gid, application, state, since) for pid, gid, state, application, since in rows
        )
    return tuple(
        Pin(pid, gid, application, state, datetime.fromisoformat(since))
        for seen in _fresh(primary, at)
        for pid, gid, state, application, since in seen.get("pins", ())
    )


def _room(connection: Connection) -> Room:
    last = _last_id(connection)
    left = max(0, reach_sync(connection) - 1 - last)
    row = connection.exec_driver_sql(query("recent_rows"), {"last": last}).first()
    return Room(left, left * row[1] / row[0] if row and row[0] else None)


def _retention(
    primary: Mapping[str, tuple[datetime, Mapping[str, Any]]],
) -> tuple[TopicLimit, ...]:
    limits = {
        topic: seconds
        for _, seen in primary.values()
        for topic, seconds in seen.get("retention", {}).items()
    }
    return tuple(TopicLimit(topic, seconds) for topic, seconds in sorted(limits.items()))


def _unsent(
    primary: Mapping[str, tuple[datetime, Mapping[str, Any]]], at: datetime
) -> tuple[str, ...]:
    """What leaders that live cannot send again."""
    return tuple(line for seen in _fresh(primary, at) for line in seen.get("unsent", ()))


def _fresh(
    primary: Mapping[str, tuple[datetime, Mapping[str, Any]]], at: datetime
) -> Iterator[Mapping[str, Any]]:
    for wrote, seen in primary.values():
        if (at - wrote).total_seconds() < GONE_SECONDS:
            yield seen


def _settled(primary: Mapping[str, tuple[datetime, Mapping[str, Any]]]) -> int:
    """The id up to which some leader has seen a fate of every message."""
    return max((seen.get("settled", 0) for _, seen in primary.values()), default=0)


def _count(number: int) -> Count:
    return Count(min(number, MOST), more=number > MOST)
