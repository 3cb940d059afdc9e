"""A range's rows in tables of their own, out of the archive.

They are not put back into the outbox. A range that is attached again would be published again by a
connector, would hold conversations of long ago again, and retention would take it away within a
minute. So it stands beside: `outbox_restored_FIRST` and `outbox_state_restored_FIRST`, with the
columns that the tables had then, whatever they have now.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, LiteralString

import psycopg
from psycopg import errors, sql

from streams.archive.parts import TABLES, ArchiveFailed, File, Part
from streams.archive.store import Store
from streams.archive.write import BATCH_ROWS, ID, INFINITE, KINDS
from streams.errors import UsageError

CYCLE = 146_097 * 86_400_000_000  # microseconds of 400 years


def parts_of(store: Store, outbox_id: int) -> list[Part]:
    """Parts of the range of this id, from the last whole one on; UsageError when there is none."""
    parts = store.holding(outbox_id)
    if not parts:
        raise UsageError(f"message {outbox_id} is in no range of the archive")
    if len({(part.first, part.last, part.database) for part in parts}) > 1:
        raise ArchiveFailed(f"message {outbox_id} is in ranges of several databases")
    whole = max((index for index, part in enumerate(parts) if part.whole), default=0)
    return parts[whole:]


def incomplete(parts: Sequence[Part]) -> str | None:
    """What these parts of one range lack; None when they are all of it."""
    if parts[0].whole:
        return None
    return (
        f"messages {parts[0].first} to {parts[0].last}: no part has all of them, only what was left"
        " after they were emptied: look for the others, or was there no archive then?"
    )


def table_name(table: str, first: int) -> str:
    """What the table with restored rows of this range is called."""
    return f"{table}_restored_{first}"


def restore(
    connection: psycopg.Connection[Any], store: Store, parts: Sequence[Part]
) -> Iterator[int]:
    """Bring the rows back, in one transaction; yields how many so far.

    The files are verified before. UsageError when the range is there already.
    """
    for part in parts:
        store.verify(part)
    done = 0
    with connection.transaction():
        for table in TABLES:
            name = table_name(table, parts[0].first)
            columns = _columns(table, parts)
            try:
                _create(connection, table, name, columns)
            except errors.DuplicateTable:
                raise UsageError(
                    f"{name} is there already: DROP TABLE it to restore anew"
                ) from None
            for part in parts:
                for count in _fill(connection, store, table, name, getattr(part, table)):
                    done += count
                    yield done


def _columns(table: LiteralString, parts: Sequence[Part]) -> dict[str, str]:
    """Of all parts: an older one may lack some, or have others."""
    columns: dict[str, str] = {}
    for part in parts:
        for name, kind in getattr(part, table).columns:
            if kind not in KINDS:  # it becomes part of a statement
                raise ArchiveFailed(f"{part.name}: {name!r:.63} is of an unknown type")
            columns[name] = kind
    if ID[table] not in columns:
        raise ArchiveFailed(f"{parts[0].name}: {table} has no column {ID[table]}")
    return columns


def _create(
    connection: psycopg.Connection[Any], table: LiteralString, name: str, columns: dict[str, str]
) -> None:
    listed = sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(column), sql.SQL(_TYPES[kind]))
        for column, kind in columns.items()
    )
    connection.execute(
        sql.SQL("CREATE TABLE {} ({}, PRIMARY KEY ({}))").format(
            sql.Identifier(name), listed, sql.Identifier(ID[table])
        )
    )


def _fill(
    connection: psycopg.Connection[Any], store: Store, table: LiteralString, name: str, file: File
) -> Iterator[int]:
    """Its rows, in place of those that an earlier part has."""
    from pyarrow import parquet

    names = [column for column, _ in file.columns]
    target, key = sql.Identifier(name), sql.Identifier(ID[table])
    with store.reading(file) as opened, parquet.ParquetFile(opened) as read:
        for batch in read.iter_batches(batch_size=BATCH_ROWS, columns=names):
            columns = [_values(batch.column(column)) for column in names]
            ids = columns[names.index(ID[table])]
            try:
                connection.execute(
                    sql.SQL("DELETE FROM {} WHERE {} = ANY(%s)").format(target, key), [ids]
                )
                copy = sql.SQL("COPY {} ({}) FROM STDIN").format(
                    target, sql.SQL(", ").join(map(sql.Identifier, names))
                )
                with connection.cursor() as cursor, cursor.copy(copy) as copying:
                    for row in zip(*columns, strict=True):
                        copying.write_row(row)
            except psycopg.DataError as error:  # its message quotes what it does not like
                raise ArchiveFailed(
                    f"{file.name}: messages {ids[0]} to {ids[-1]} are refused by PostgreSQL"
                    f" (SQLSTATE {error.sqlstate})"
                ) from None
            yield len(ids)


def _values(column: Any) -> list[Any]:
    """A column as COPY takes it; times as text, for Python has no infinite ones."""
    from pyarrow import int64, timestamp, types

    if not types.is_timestamp(column.type):
        return list(column.to_pylist())
    counts = column.cast(timestamp("us", column.type.tz)).cast(int64()).to_pylist()
    zone = "" if column.type.tz is None else "+00"
    return [None if count is None else time_text(count, zone) for count in counts]


def time_text(microseconds: int, zone: str = "") -> str:
    """A time since 1970 as PostgreSQL reads it, of any year, or infinity: `1970-01-01 00:00:00`."""
    if abs(microseconds) == INFINITE:
        return "infinity" if microseconds > 0 else "-infinity"
    # The calendar repeats itself every 400 years, and Python has those after 1970.
    cycles, rest = divmod(microseconds, CYCLE)
    at = datetime(1970, 1, 1) + timedelta(microseconds=rest)
    year = at.year + 400 * cycles
    shown, era = (year, "") if year > 0 else (1 - year, " BC")
    return f"{shown:04}-{at:%m-%d} {at.time()}{zone}{era}"


_TYPES: dict[str, LiteralString] = {
    "bigint": "bigint",
    "integer": "integer",
    "smallint": "smallint",
    "boolean": "boolean",
    "double precision": "double precision",
    "bytea": "bytea",
    "text": "text",
    "json": "json",
    "jsonb": "jsonb",
    "timestamp with time zone": "timestamptz",
    "timestamp without time zone": "timestamp",
    "timestamp(3) without time zone": "timestamp(3)",
}
