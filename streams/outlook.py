"""What a deployment waits for, or will soon run out of, in one line each: for `streams status`."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Connection

from db import query


def outlook(connection: Connection) -> list[str]:
    """One line for each thing that somebody has to do, most urgent last; empty when there is nothing."""
    rows = connection.exec_driver_sql(query("unknown_biz_types"))
    return [
        f"{count} {'message waits' if count == 1 else 'messages wait'} since {_time(since)} for a worker that knows biz_type"
        f" {biz_type!r}: deploy one before {_time(until)}, or run `streams biz-types retire`"
        for biz_type, count, since, until in rows
    ]


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
