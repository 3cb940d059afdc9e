"""What a deployment waits for, or will soon run out of, in one line each: for `streams status`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import Connection

from streams.database import query
from streams.database.partitions import reach_sync

LEAST_SECONDS = 3600.0
PIN_SECONDS = 60.0


def outlook(connection: Connection) -> list[str]:
    """One line for each thing that somebody has to do, most urgent last; empty when there is nothing."""
    rows = connection.exec_driver_sql(query("unknown_biz_types"))
    unknown = [
        f"{count} {'message waits' if count == 1 else 'messages wait'} since {_time(since)} for a worker that knows biz_type"
        f" {biz_type!r}: deploy one before {_time(until)}, or run `streams biz-types retire`"
        for biz_type, count, since, until in rows
    ]
    waiting = [*pins(connection), *unknown]
    left = room(connection)
    if left.seconds is None or left.seconds >= LEAST_SECONDS:
        return waiting
    return [
        *waiting,
        (
            f"the outbox has partitions for {left.ids:,} more rows, {left.seconds / 60:.0f} minutes at the present rate,"
            " then enqueueing fails: start a relay, it makes them"
        ),
    ]


def pins(connection: Connection) -> list[str]:
    """Who holds the floor for longer than a minute, one line each."""
    rows = connection.exec_driver_sql(query("outbox_pins"), {"seconds": PIN_SECONDS})
    return [
        (
            f"prepared transaction {gid!r}"
            if gid is not None
            else f"the transaction of pid {pid} ({', '.join(filter(None, (application, state)))})"
        )
        + f" is open since {_time(since)} and holds the relay's floor: what it wrote last cannot be told from what is lost; "
        + (f"COMMIT PREPARED or ROLLBACK PREPARED {gid!r}" if gid is not None else "end it")
        for pid, gid, state, application, since in rows
    ]


class Room(NamedTuple):
    """For how many ids there are partitions, and how long they last at the present rate; None while nothing is written."""

    ids: int
    seconds: float | None


def room(connection: Connection) -> Room:
    """How far the partitions of the outbox reach."""
    last = connection.exec_driver_sql(query("last_id")).scalar_one()
    left = max(0, reach_sync(connection) - 1 - last)
    row = connection.exec_driver_sql(query("recent_rows")).first()
    return Room(left, left * row[1] / row[0] if row and row[0] else None)


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
