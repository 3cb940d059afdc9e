"""Business code enqueues events in its own transaction; nothing here talks to Kafka or commits.

    outbox.start()                  # once per process: reads faust.yml and the environment
    async with session.begin():
        session.add(order)
        await outbox.enqueue(
            session, ChatHistoryPersist(user_id=7, conversation_id="c1", role="user", message="hi")
        )

`enqueue` and `record` take an AsyncSession, async_scoped_session or AsyncConnection, their `_sync`
twins a Session, scoped_session or Connection; of any of SQLAlchemy's drivers for PostgreSQL, since
statements and parameters are SQLAlchemy's. SQLAlchemy is loaded when it is used: whoever gives one
of its sessions has loaded it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, overload

from streams import codec, telemetry
from streams.database import statement
from streams.errors import OutboxDisabled, OutboxNotConfigured, PayloadInvalid, UsageError
from streams.events import Batch, EventType, Message, TextBatch, batches, declared
from streams.registry import Registry, configured
from streams.settings import Settings, load

if TYPE_CHECKING:
    from sqlalchemy import Connection, Update
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, scoped_session

AsyncDatabase: TypeAlias = "AsyncSession | AsyncConnection | async_scoped_session[Any]"
Database: TypeAlias = "Session | Connection | scoped_session[Any]"

# Transactions share the server's lock table with everybody: by default it has room for some 6,400
# locks.
ORDERED_KEYS = 1000


@dataclass(frozen=True, slots=True)
class _Outbox:
    settings: Settings
    registry: Registry


class _Direct(NamedTuple):
    biz_type: str
    key: str
    message: Message[Any]


_outbox: _Outbox | None = None


def start(settings: Settings | None = None) -> None:
    """Read the settings (default: faust.yml and environment) and the agents.

    It may be called in any state: the last call wins.
    """
    global _outbox
    _outbox = None
    chosen = settings or load()
    _outbox = _Outbox(chosen, configured(chosen))


def close() -> None:
    """Forget what `start` read; safe in any state, also after a failed start."""
    global _outbox
    _outbox = None


@overload
async def enqueue(  # type: ignore[overload-overlap]  # a sequence is an object too
    db: AsyncDatabase, events: Sequence[Any], *, ordered: bool = ..., traceparent: str | None = ...
) -> list[int]: ...
@overload
async def enqueue(
    db: AsyncDatabase, events: object, *, ordered: bool = ..., traceparent: str | None = ...
) -> int: ...
async def enqueue(
    db: AsyncDatabase, events: object, *, ordered: bool = False, traceparent: str | None = None
) -> int | list[int]:
    """Enqueue one event or a sequence of them in the caller's transaction.

    Returns its outbox_id, or a list of theirs.

    `ordered=True` makes concurrent transactions that write one key take turns; without it their
    order is undefined. Raises OutboxNotConfigured, OutboxDisabled, PayloadInvalid, UsageError;
    nothing was sent then.
    """
    if not (rows := checked_rows(events, ordered)):
        return []
    connection = await _async_connection(db)
    with telemetry.enqueueing({row[1] for row in rows}, traceparent) as parent:
        if ordered:
            await _take_turns(connection, rows)
        name, parameters = insert_rows(rows, parent)
        inserted = await _sent(connection, name, parameters)
        return ids_of(events, [row[0] for row in inserted])


@overload
def enqueue_sync(  # type: ignore[overload-overlap]  # a sequence is an object too
    db: Database, events: Sequence[Any], *, ordered: bool = ..., traceparent: str | None = ...
) -> list[int]: ...
@overload
def enqueue_sync(
    db: Database, events: object, *, ordered: bool = ..., traceparent: str | None = ...
) -> int: ...
def enqueue_sync(
    db: Database, events: object, *, ordered: bool = False, traceparent: str | None = None
) -> int | list[int]:
    """Like `enqueue`, for a Session or Connection."""
    if not (rows := checked_rows(events, ordered)):
        return []
    connection = _connection(db)
    with telemetry.enqueueing({row[1] for row in rows}, traceparent) as parent:
        if ordered:
            asked = _sent_sync(connection, "enqueue_in_order", keys_of(rows))
            if asked.scalars().all()[0] > ORDERED_KEYS:
                refuse_locks(_sent_sync(connection, "ordered_locks").scalar_one())
        name, parameters = insert_rows(rows, parent)
        inserted = _sent_sync(connection, name, parameters)
        return ids_of(events, [row[0] for row in inserted])


async def record(
    db: AsyncDatabase, events: object, *, ordered: bool = False, traceparent: str | None = None
) -> None:
    """Have the events written either way: enqueued, or by their handlers right here.

    The latter while `outbox.enabled` is false. Both happen in the caller's transaction.
    """
    if _configured().settings.outbox.enabled:
        await enqueue(db, events, ordered=ordered, traceparent=traceparent)
        return
    if not (rows := _rows(events, ordered)):
        return
    connection = await _async_connection(db)
    if ordered:
        await _take_turns(connection, rows)
    for biz_type, batch in await _drawn(connection, rows, _sequence(events)):
        with _unspoken():
            await _configured().registry.agents[biz_type].handler(batch, connection)


def record_sync(
    db: Database, events: object, *, ordered: bool = False, traceparent: str | None = None
) -> None:
    """Like `record`, for a Session or Connection.

    The handler may await nothing but its connection.
    """
    if _configured().settings.outbox.enabled:
        enqueue_sync(db, events, ordered=ordered, traceparent=traceparent)
        return
    from streams.sync_handler import run_sync

    run_sync(_connection(db), lambda connection: record(connection, events, ordered=ordered))


def outbox_row(event: object, settings: Settings, registry: Registry) -> tuple[str, str, str, str]:
    """The (biz_type, topic, key, payload) that `enqueue` writes for an event.

    PayloadInvalid when it refuses it.
    """
    kind = declared(type(event))
    agent = registry.agents.get(kind.biz_type)
    if agent is None:
        raise PayloadInvalid(
            f"{kind.biz_type}: no agent for it was discovered; add its package to `agents` in"
            " faust.yml"
        )
    if agent.event.payload is not kind.payload and _shape(agent.event) != _shape(kind):
        ours, theirs = (
            f"{each.__module__}.{each.__qualname__}" for each in (type(event), agent.event.payload)
        )
        raise PayloadInvalid(
            f"{kind.biz_type}: {ours} is not what its agent reads, {theirs}: expected one class for"
            " a biz_type, or the same fields and key"
        )
    key, payload = codec.encode(event, kind, settings.outbox.max_bytes)
    return kind.biz_type, agent.event.topic, key, payload


@cache
def _shape(kind: EventType) -> tuple[Any, ...]:
    """What makes two classes of one biz_type the same: key and fields."""
    return kind.key, tuple((each.name, str(each.type)) for each in fields(kind.payload))


def checked_rows(events: object, ordered: bool) -> list[tuple[str, str, str, str]]:
    """The rows (biz_type, topic, key, payload) of these events.

    All of them are checked before anything is sent.
    """
    started = _configured()
    if not started.settings.outbox.enabled:
        raise OutboxDisabled(
            "outbox.enabled is false: use outbox.record, which writes directly then"
        )
    return _rows(events, ordered)


def _rows(events: object, ordered: bool) -> list[tuple[str, str, str, str]]:
    started = _configured()
    rows = [outbox_row(event, started.settings, started.registry) for event in _sequence(events)]
    if ordered and len(keys := {row[2] for row in rows}) > ORDERED_KEYS:
        raise UsageError(
            f"ordered=True with {len(keys)} keys in one call: expected at most {ORDERED_KEYS},"
            " each takes a lock of the server's; enqueue them in several transactions"
        )
    return rows


async def _take_turns(
    connection: AsyncConnection, rows: Sequence[tuple[str, str, str, str]]
) -> None:
    """Wait for the transactions that write a key of these rows; others wait for this one's end."""
    asked = await _sent(connection, "enqueue_in_order", keys_of(rows))
    if asked.scalars().all()[0] > ORDERED_KEYS:
        refuse_locks((await _sent(connection, "ordered_locks")).scalar_one())


def refuse_locks(held: int) -> None:
    """UsageError when a transaction holds more locks of keys than one may take."""
    if held > ORDERED_KEYS:
        raise UsageError(
            f"ordered=True with {held} keys in one transaction: expected at most {ORDERED_KEYS},"
            " each takes a lock of the server's; enqueue them in several transactions"
        )


def keys_of(rows: Sequence[tuple[str, str, str, str]]) -> dict[str, Any]:
    """The parameters of the query `enqueue_in_order` for these rows."""
    return {"keys": sorted({key for _, _, key, _ in rows})}


def insert_rows(
    rows: Sequence[tuple[str, str, str, str]], traceparent: str | None = None
) -> tuple[str, dict[str, Any]]:
    """The named query that writes these rows and returns their ids, and its parameters.

    There has to be one row at least.
    """
    if len(rows) == 1:
        [(biz_type, topic, key, payload)] = rows
        row = {
            "biz_type": biz_type,
            "topic": topic,
            "key": key,
            "payload": payload,
            "traceparent": traceparent,
        }
        return "enqueue_one", row
    columns = zip(("biz_types", "topics", "keys", "payloads"), zip(*rows, strict=True), strict=True)
    many = {name: list(values) for name, values in columns}
    return "enqueue_many", {**many, "traceparent": traceparent}


def ids_of(events: object, ids: list[int]) -> int | list[int]:
    """What `enqueue` returns: one id for one event, a list for a sequence of them."""
    return sorted(ids) if isinstance(events, Sequence) else ids[0]


# Whatever the caller's connection does with rows of its own: an INSERT has no cursor there.
_AT_ONCE: Mapping[str, Any] = {"stream_results": False, "yield_per": None}


async def _sent(
    connection: AsyncConnection, name: str, parameters: Mapping[str, Any] | None = None
) -> Any:
    with _unspoken():
        return await connection.execute(statement(name), parameters, execution_options=_AT_ONCE)


def _sent_sync(
    connection: Connection, name: str, parameters: Mapping[str, Any] | None = None
) -> Any:
    with _unspoken():
        return connection.execute(statement(name), parameters, execution_options=_AT_ONCE)


@contextmanager
def _unspoken() -> Iterator[None]:
    """An error within this does not print its parameters: the message's text is among them."""
    try:
        yield
    except Exception as error:
        if hasattr(error, "hide_parameters"):
            error.hide_parameters = True
        raise


def _writing() -> dict[str, Any]:
    """What tells a session that chooses among databases that it is asked for a writer."""
    return {"clause": _write()}


@cache
def _write() -> Update:
    from sqlalchemy import table, update

    return update(table("outbox"))


async def _async_connection(db: AsyncDatabase) -> AsyncConnection:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

    session = isinstance(db, AsyncSession | async_scoped_session)
    connection = await db.connection(_writing()) if session else db
    if not isinstance(connection, AsyncConnection):
        raise _refused(db, "an AsyncSession, async_scoped_session or AsyncConnection")
    plain = connection.sync_connection
    if plain is not None and not plain.closed:  # else the first statement says what is wrong
        if plain.invalidated:
            await connection.get_raw_connection()
        _refuse_autocommit(plain)
    return connection


def _connection(db: Database) -> Connection:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session, scoped_session

    connection = db.connection(_writing()) if isinstance(db, Session | scoped_session) else db
    if not isinstance(connection, Connection):
        raise _refused(db, "a Session, scoped_session or Connection")
    if not connection.closed:
        _refuse_autocommit(connection)
    return connection


def _refuse_autocommit(connection: Connection) -> None:
    """UsageError when the driver commits each statement; without a round trip."""
    driver = connection.connection.dbapi_connection
    with suppress(NotImplementedError):  # a dialect that is not SQLAlchemy's own may not know
        if driver is not None and connection.dialect.detect_autocommit_setting(driver):
            raise UsageError(
                "a connection was given that commits each statement (AUTOCOMMIT): expected one that"
                " has a transaction, or the message is committed whatever becomes of what it tells"
            )


def _refused(db: object, expected: str) -> UsageError:
    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
    from sqlalchemy.orm import Session, scoped_session

    kind = f"{type(db).__module__}.{type(db).__qualname__}"
    hint = ""
    if isinstance(db, Session | Connection | scoped_session):
        hint = "; enqueue_sync takes this one"
    elif isinstance(db, AsyncSession | AsyncConnection | async_scoped_session):
        hint = "; enqueue takes this one"
    return UsageError(f"a {kind} was given: expected {expected} of SQLAlchemy{hint}")


def _configured() -> _Outbox:
    if _outbox is None:
        raise OutboxNotConfigured(
            "the outbox is not configured: call streams.outbox.start() when the process starts"
        )
    return _outbox


def _sequence(events: object) -> Sequence[object]:
    return events if isinstance(events, Sequence) else [events]


async def _drawn(
    connection: AsyncConnection,
    rows: Sequence[tuple[str, str, str, str]],
    events: Sequence[object],
) -> list[tuple[str, Batch[Any]]]:
    """The events as a worker's batches, with ids drawn from the outbox's own sequence.

    So they collide with no enqueued one.
    """
    drawn = await connection.execute(statement("draw_ids"), {"count": len(rows)})
    now = time.time_ns() // 1_000_000
    direct = [
        _Direct(biz_type, key, Message(outbox_id, key, event, now))
        for (biz_type, _, key, _), event, (outbox_id,) in zip(rows, events, drawn, strict=True)
    ]
    made = Batch if connection.dialect.driver == "psycopg" else TextBatch
    return [
        (biz_type, made([each.message for each in batch])) for biz_type, batch in batches(direct)
    ]
