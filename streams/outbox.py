"""Business code enqueues events in its own transaction; nothing here talks to Kafka, commits, or needs Faust.

    outbox.start()                                        # once per process: reads faust.yml and the environment
    async with session.begin():
        session.add(order)
        await outbox.enqueue(session, ChatHistoryPersist(user_id=7, conversation_id="c1", role="user", message="hi"))

`enqueue` and `record` take an AsyncSession or AsyncConnection, their `_sync` twins a Session or Connection.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, LiteralString, overload

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from db import query
from streams import codec, telemetry
from streams.bridge import run_sync
from streams.errors import OutboxDisabled, OutboxNotConfigured, PayloadInvalid
from streams.events import Batch, Message, declared
from streams.registry import Registry, configured
from streams.settings import Settings, load


@dataclass(frozen=True, slots=True)
class _Outbox:
    settings: Settings
    registry: Registry


_outbox: _Outbox | None = None


def start(settings: Settings | None = None) -> None:
    """Read the settings (default: faust.yml and environment) and the agents; safe in any state, the last call wins."""
    global _outbox
    _outbox = None
    found = settings or load()
    _outbox = _Outbox(found, configured(found))


def close() -> None:
    """Forget what `start` read; safe in any state, also after a failed start."""
    global _outbox
    _outbox = None


@overload
async def enqueue(  # type: ignore[overload-overlap]  # a sequence is an object too
    db: AsyncSession | AsyncConnection, events: Sequence[Any], *, ordered: bool = ..., traceparent: str | None = ...
) -> list[int]: ...
@overload
async def enqueue(
    db: AsyncSession | AsyncConnection, events: object, *, ordered: bool = ..., traceparent: str | None = ...
) -> int: ...
async def enqueue(
    db: AsyncSession | AsyncConnection, events: object, *, ordered: bool = False, traceparent: str | None = None
) -> int | list[int]:
    """Enqueue one event (returns its outbox_id) or a sequence of them (their outbox_ids) in the caller's transaction.

    `ordered=True` makes concurrent transactions that write one key take turns; without it their order is undefined.
    Raises OutboxNotConfigured, OutboxDisabled, PayloadInvalid; nothing was written then.
    """
    if not (rows := _rows(events)):
        return []
    connection = await db.connection() if isinstance(db, AsyncSession) else db
    with telemetry.enqueueing({row[1] for row in rows}, traceparent) as parent:
        if ordered:
            await connection.exec_driver_sql(*_in_order(rows))
        found = await connection.exec_driver_sql(*insert_rows(rows, parent))
        return _ids(events, [row[0] for row in found])


@overload
def enqueue_sync(  # type: ignore[overload-overlap]  # a sequence is an object too
    db: Session | Connection, events: Sequence[Any], *, ordered: bool = ..., traceparent: str | None = ...
) -> list[int]: ...
@overload
def enqueue_sync(
    db: Session | Connection, events: object, *, ordered: bool = ..., traceparent: str | None = ...
) -> int: ...
def enqueue_sync(
    db: Session | Connection, events: object, *, ordered: bool = False, traceparent: str | None = None
) -> int | list[int]:
    """Like `enqueue`, for a Session or Connection."""
    if not (rows := _rows(events)):
        return []
    connection = db.connection() if isinstance(db, Session) else db
    with telemetry.enqueueing({row[1] for row in rows}, traceparent) as parent:
        if ordered:
            connection.exec_driver_sql(*_in_order(rows))
        found = connection.exec_driver_sql(*insert_rows(rows, parent))
        return _ids(events, [row[0] for row in found])


async def record(
    db: AsyncSession | AsyncConnection, events: object, *, ordered: bool = False, traceparent: str | None = None
) -> None:
    """Have the events written either way: enqueued, or, while `outbox.enabled` is false, by their handlers right here.

    Both happen in the caller's transaction.
    """
    if _configured().settings.outbox.enabled:
        await enqueue(db, events, ordered=ordered, traceparent=traceparent)
        return
    connection = await db.connection() if isinstance(db, AsyncSession) else db
    for biz_type, batch in await _drawn(connection, events):
        await _configured().registry.agents[biz_type].handler(batch, connection)


def record_sync(
    db: Session | Connection, events: object, *, ordered: bool = False, traceparent: str | None = None
) -> None:
    """Like `record`, for a Session or Connection; the handler may await nothing but its connection."""
    if _configured().settings.outbox.enabled:
        enqueue_sync(db, events, ordered=ordered, traceparent=traceparent)
        return
    run_sync(db.connection() if isinstance(db, Session) else db, lambda connection: record(connection, events))


def outbox_row(event: object, settings: Settings, registry: Registry) -> tuple[str, str, str, str]:
    """The (biz_type, topic, key, payload) that `enqueue` writes for an event; PayloadInvalid when it refuses it."""
    kind = declared(type(event))
    agent = registry.agents.get(kind.biz_type)
    if agent is None:
        raise PayloadInvalid(
            f"{kind.biz_type}: no agent for it was discovered; add its package to `agents` in faust.yml"
        )
    key, payload = codec.encode(event, kind, settings.outbox.max_bytes)
    return kind.biz_type, agent.event.topic, key, payload


def insert_rows(
    rows: Sequence[tuple[str, str, str, str]], traceparent: str | None = None
) -> tuple[LiteralString, dict[str, Any]]:
    """The statement that writes these rows, at least one, and returns their ids."""
    if len(rows) == 1:
        [(biz_type, topic, key, payload)] = rows
        one = {"biz_type": biz_type, "topic": topic, "key": key, "payload": payload, "traceparent": traceparent}
        return query("enqueue_one"), one
    columns = zip(("biz_types", "topics", "keys", "payloads"), zip(*rows, strict=True), strict=True)
    many = {name: list(values) for name, values in columns}
    return query("enqueue_many"), {**many, "traceparent": traceparent}


def _configured() -> _Outbox:
    if _outbox is None:
        raise OutboxNotConfigured("the outbox is not configured: call streams.outbox.start() when the process starts")
    return _outbox


def _rows(events: object) -> list[tuple[str, str, str, str]]:
    """Everything is checked before anything is written."""
    started = _configured()
    if not started.settings.outbox.enabled:
        raise OutboxDisabled("outbox.enabled is false: use outbox.record, which writes directly then")
    return [outbox_row(event, started.settings, started.registry) for event in _sequence(events)]


def _in_order(rows: Sequence[tuple[str, str, str, str]]) -> tuple[LiteralString, dict[str, Any]]:
    return query("enqueue_in_order"), {"keys": sorted({key for _, _, key, _ in rows})}


def _sequence(events: object) -> Sequence[object]:
    return events if isinstance(events, Sequence) else [events]


def _ids(events: object, ids: list[int]) -> int | list[int]:
    return sorted(ids) if isinstance(events, Sequence) else ids[0]


async def _drawn(connection: AsyncConnection, events: object) -> list[tuple[str, Batch[Any]]]:
    """The events as batches with ids drawn from the outbox's own sequence, so that they collide with no enqueued one."""
    started = _configured()
    checked = [(declared(type(event)), event) for event in _sequence(events)]
    keys = [outbox_row(event, started.settings, started.registry)[2] for _, event in checked]
    rows = await connection.exec_driver_sql(query("draw_ids"), {"count": len(checked)})
    ids = [row[0] for row in rows]
    now = time.time_ns() // 1_000_000
    batches: dict[str, list[Message[Any]]] = {}
    for (kind, event), key, outbox_id in zip(checked, keys, ids, strict=True):
        batches.setdefault(kind.biz_type, []).append(Message(outbox_id, key, event, now))
    return [(biz_type, Batch(messages)) for biz_type, messages in batches.items()]
