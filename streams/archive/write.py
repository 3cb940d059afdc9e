"""The rows of one range into a part that is read back.

It runs inside the relay, beside what publishes: rows come a few at a time, and whatever may wait
for the place where they go is done in a thread that nobody has to wait for. Each few are a
statement of their own: one snapshot for minutes would keep every dead row of `outbox_open`. What is
settled cannot change meanwhile; what may (`Content`) is counted before, and once more when the
range is locked.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, LiteralString, ParamSpec, TypeVar

import psycopg
from psycopg import sql

from streams.archive.parts import (
    FORMAT,
    TABLES,
    ArchiveFailed,
    Content,
    File,
    Part,
    digest_of_ids,
    part_name,
)
from streams.archive.store import Store
from streams.database.queries import query
from streams.settings import Settings
from streams.tasks import apart

BATCH_BYTES = 4_000_000  # of rows that are held at once
BATCH_ROWS = 2000  # that one statement asks for
GROUP_BYTES = 16_000_000  # of a row group
AGAIN_SECONDS = 600.0  # until files that were believed are read again
PATIENCE = 600.0  # seconds for one step at the place where the archive is
INFINITE = 2**63 - 1  # as DuckDB has it, in microseconds
ID: dict[str, LiteralString] = {"outbox": "id", "outbox_state": "outbox_id"}


P = ParamSpec("P")
T = TypeVar("T")


async def patiently(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """What this blocking call returns; ArchiveFailed when it takes longer than anybody waits."""
    try:
        async with asyncio.timeout(PATIENCE):
            return await apart(work, *arguments, **options)
    except TimeoutError:
        raise ArchiveFailed(f"the archive does not answer within {PATIENCE:g} s") from None


async def writer(settings: Settings) -> Writer | None:
    """As the settings say; None when nothing is archived.

    ExtraMissing without the extra; ArchiveFailed when the place cannot be reached.
    """
    target = settings.outbox.archive
    return None if target is None else Writer(await patiently(Store, target))


class Writer:
    """Archives ranges; remembers which parts it has seen to be whole."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._verified: dict[str, float] = {}

    async def archive(
        self,
        connection: psycopg.AsyncConnection[Any],
        first: int,
        last: int,
        *,
        whole: bool,
    ) -> Part:
        """The part that holds this range as it is now, written unless there is one.

        ArchiveFailed when it cannot be; whatever was written then does not count.
        """
        bounds = {"first": first, "last": last}
        database = (await _rows(connection, "database_identity"))[0][0]
        content = await self._content(connection, **bounds)
        parts = await patiently(self._store.about, first, last)
        if any(part.database != database for part in parts):
            raise ArchiveFailed(
                f"the archive holds messages {first} to {last} of another database:"
                " give this one a folder of its own"
            )
        if parts and parts[-1].content == content:
            await self._believe(parts[-1])
            return parts[-1]
        about = {**bounds, "part": await patiently(self._number, parts, first, last, whole)}
        files = {table: await self._table(connection, table, **about) for table in TABLES}
        ages = await _rows(connection, "range_ages", **bounds)
        oldest, newest = (None if at is None else at.isoformat() for at in ages[0])
        part = Part(
            format=FORMAT,
            first=first,
            last=last,
            part=about["part"],
            whole=whole,
            database=database,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            oldest=oldest,
            newest=newest,
            content=content,
            outbox=files["outbox"],
            outbox_state=files["outbox_state"],
        )
        if (part.outbox.rows, part.outbox_state.rows) != (content.rows, content.states):
            raise ArchiveFailed(f"messages {first} to {last} were not read as they were counted")
        await patiently(self._store.verify, part)
        await patiently(read_back, self._store, part)
        await patiently(self._store.save, part)
        self._verified[part.name] = time.monotonic()
        return part

    def _number(self, parts: Sequence[Part], first: int, last: int, whole: bool) -> int:
        """Of the next part.

        While the range is whole in the outbox, that after the last one. What is left of it later
        is never the first: files that no manifest names any more may be all that is left of it.
        """
        newest = parts[-1].part if parts else 0
        return newest + 1 if whole else max(1, newest, *self._store.numbers(first, last)) + 1

    async def unchanged(
        self,
        connection: psycopg.AsyncConnection[Any],
        part: Part,
        *,
        rows: int,
        states: int,
        unsettled: Sequence[int],
    ) -> bool:
        """Whether so many rows and states, of them these unsettled, are what was archived.

        Ask while nobody else can write to the range.
        """
        now = Content(
            rows=rows,
            states=states,
            unsettled=digest_of_ids(unsettled),
            erased=(await _rows(connection, "erasures"))[0],
        )
        return now == part.content

    async def _content(
        self, connection: psycopg.AsyncConnection[Any], *, first: int, last: int
    ) -> Content:
        bounds = {"first": first, "last": last}
        rows, states = (await _rows(connection, "range_counts", **bounds))[0]
        unsettled = await _rows(connection, "range_open", **bounds)
        ids = [outbox_id for outbox_id, contradicts in unsettled if not contradicts]
        erased = (await _rows(connection, "erasures"))[0]
        return Content(rows=rows, states=states, unsettled=digest_of_ids(ids), erased=erased)

    async def _believe(self, part: Part) -> None:
        """Read a part that was written before, now and then."""
        seen = self._verified.get(part.name)
        if seen is None or time.monotonic() - seen > AGAIN_SECONDS:
            await patiently(self._store.verify, part)
            self._verified[part.name] = time.monotonic()

    async def _table(
        self,
        connection: psycopg.AsyncConnection[Any],
        table: LiteralString,
        *,
        first: int,
        last: int,
        part: int,
    ) -> File:
        columns = await columns_of(connection, table)
        name = f"{part_name(first, last, part)}.{secrets.token_hex(4)}.{table}.parquet"
        columns_named = sql.SQL(", ").join(_selected(*column) for column in columns)
        statement = sql.SQL(
            "SELECT {key}, {columns} FROM {table} WHERE {key} > %s AND {key} <= %s"
            " ORDER BY {key} LIMIT %s"
        ).format(key=sql.Identifier(ID[table]), columns=columns_named, table=sql.Identifier(table))
        rows, after = 0, first - 1
        sheet = await patiently(Sheet, self._store, name, columns)
        try:
            while found := await self._some(connection, statement, [after, last], sheet):
                count, after = found
                rows += count
            size, digest = await patiently(sheet.close)
        except BaseException:
            sheet.abandon()
            raise
        return File(name=name, bytes=size, sha256=digest, rows=rows, columns=columns)

    async def _some(
        self,
        connection: psycopg.AsyncConnection[Any],
        statement: sql.Composed,
        where: list[int],
        sheet: Sheet,
    ) -> tuple[int, int] | None:
        """Some more rows into the sheet: how many, and the id of the last; None: there are none.

        They come one by one, so that large ones behind small ones are not held at once.
        """
        count, last, held, size = 0, 0, list[tuple[Any, ...]](), 0
        async with connection.cursor() as cursor:
            async for row in cursor.stream(statement, [*where, BATCH_ROWS]):
                count, last = count + 1, row[0]
                held.append(row[1:])
                size += sum(len(value) for value in row if isinstance(value, str | bytes))
                if size >= BATCH_BYTES:
                    await patiently(sheet.add, held)
                    held, size = [], 0
        if held:
            await patiently(sheet.add, held)
        return (count, last) if count else None


class Sheet:
    """A Parquet file that is written, a batch of rows after another; blocking."""

    def __init__(self, store: Store, name: str, columns: Sequence[tuple[str, str]]) -> None:
        import pyarrow
        from pyarrow import parquet

        self._arrow = pyarrow
        self._schema = pyarrow.schema([(name, _arrow_type(kind)) for name, kind in columns])
        self._file = store.writing(name)
        self._written = self._file.__enter__()
        self._writer = parquet.ParquetWriter(self._written, self._schema, compression="zstd")
        self._batches: list[Any] = []
        self._bytes = 0

    def add(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Add rows."""
        arrays = [
            self._arrow.array(column, type=field.type)
            for column, field in zip(zip(*rows, strict=True), self._schema, strict=True)
        ]
        batch = self._arrow.record_batch(arrays, schema=self._schema)
        self._batches.append(batch)
        self._bytes += batch.nbytes
        if self._bytes >= GROUP_BYTES:
            self._flush()

    def close(self) -> tuple[int, str]:
        """Write what is left, and the end; the file's size and SHA-256."""
        self._flush()
        self._writer.close()
        self._file.__exit__(None, None, None)
        return self._written.bytes, self._written.sha256

    def abandon(self) -> None:
        """Leave it as it is: it is closed by a thread that nobody waits for."""

        def leave() -> None:
            self._written.ended = True
            with suppress(Exception):
                self._file.__exit__(None, None, None)

        threading.Thread(target=leave, name="archive given up", daemon=True).start()

    def _flush(self) -> None:
        if self._batches:
            self._writer.write_table(self._arrow.Table.from_batches(self._batches, self._schema))
        self._batches, self._bytes = [], 0


def read_back(store: Store, part: Part) -> None:
    """Decode every row of a part; ArchiveFailed when it is not what its manifest says."""
    from pyarrow import parquet

    for table, file in zip(TABLES, (part.outbox, part.outbox_state), strict=True):
        rows = strays = 0
        with store.reading(file) as opened, parquet.ParquetFile(opened) as read:
            for batch in read.iter_batches(batch_size=BATCH_ROWS):
                ids = batch.column(ID[table]).to_pylist()
                rows += len(ids)
                strays += sum(not part.first <= each <= part.last for each in ids)
        if rows != file.rows or strays:
            raise ArchiveFailed(f"{file.name}: {rows} rows were read back of {file.rows} written")


async def columns_of(
    connection: psycopg.AsyncConnection[Any], table: LiteralString
) -> list[tuple[str, str]]:
    """Names and types of its columns, today."""
    columns = await _rows(connection, "columns", table=table)
    return [(name, kind if kind in KINDS else "text") for name, kind in columns]


async def _rows(
    connection: psycopg.AsyncConnection[Any], name: str, /, **parameters: Any
) -> list[tuple[Any, ...]]:
    return await (await connection.execute(query(name), parameters)).fetchall()


def _selected(name: str, kind: str) -> sql.Composable:
    """A column as it is kept: what Arrow has no type for is text, JSON to the letter.

    Times are microseconds since 1970, for Python has no infinite ones and none after 9999.
    """
    column = sql.Identifier(name)
    if KINDS[kind] == "string":
        return sql.SQL("{}::text").format(column)
    if KINDS[kind].startswith("timestamp"):
        return sql.SQL(
            "CASE WHEN isfinite({0}) THEN (extract(epoch FROM {0}) * 1000000)::bigint"
            " WHEN {0} > '2000-01-01' THEN {1}"
            " WHEN {0} < '2000-01-01' THEN -{1} END"
        ).format(column, sql.Literal(INFINITE))
    return column


# Types of PostgreSQL, as Arrow has them; everything else is text.
KINDS = {
    "bigint": "int64",
    "integer": "int32",
    "smallint": "int16",
    "boolean": "bool_",
    "double precision": "float64",
    "bytea": "binary",
    "text": "string",
    "json": "string",
    "jsonb": "string",
    "timestamp with time zone": "timestamptz",
    "timestamp without time zone": "timestamp",
    "timestamp(3) without time zone": "timestamp",
}


def _arrow_type(kind: str) -> Any:
    import pyarrow

    name = KINDS[kind]
    if name.startswith("timestamp"):
        return pyarrow.timestamp("us", tz="UTC" if name == "timestamptz" else None)
    return getattr(pyarrow, name)()
