"""What a deployment waits for, or will soon run out of, in one line each: for `streams status`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import Connection

from db import query
from db.partitions import reach_sync

LEAST_SECONDS = 3600.0


def outlook(connection: Connection) -> list[str]:
    """One line for each thing that somebody has to do, most urgent last; empty when there is nothing."""
    rows = connection.exec_driver_sql(query("unknown_biz_types"))
    unknown = [
        f"{count} {'message waits' if count == 1 else 'messages wait'} since {_time(since)} for a worker that knows biz_type"
        f" {biz_type!r}: deploy one before {_time(until)}, or run `streams biz-types retire`"
        for biz_type, count, since, until in rows
    ]
    left = room(connection)
    if left.seconds is None or left.seconds >= LEAST_SECONDS:
        return unknown
    return [
        *unknown,
        (
            f"the outbox has partitions for {left.ids:,} more rows, {left.seconds / 60:.0f} minutes at the present rate,"
            " then enqueueing fails: start a relay, it makes them"
        ),
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
