"""One conversation on one axis of time: what waits, what came late, what is not there yet.

A conversation is found by index only while something of it is open or dead. Everything else is
looked for from the newest id back, a little at a time: who asks says how long it may take, and is
told how far it got.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from streams.database import query
from streams.database.partitions import first_sync
from streams.message_id import MessageId, name_of
from streams.operate.look import enqueued_first, heads
from streams.operate.snapshot import Head

WINDOW = 50_000
"""Ids looked through in one statement: about 15 ms."""
MOST = 100
"""Messages that one look back finds, so that a page stays small."""
FIRST = 20
"""Open messages, and dead ones, that are shown before any look back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisItem:
    """One message of a conversation.

    `late`: persisted after one that was enqueued later. `gap`: without a fate although a later one
    has one.
    """

    outbox_id: MessageId
    biz_type: str | None
    enqueued: datetime | None
    status: str
    attempts: int
    error_code: str | None
    due: datetime | None
    partition: int | None
    offset: int | None
    applied: int | None
    arrived: int | None
    updated: datetime | None
    resends: int
    late: bool = False
    gap: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A conversation, its messages in order.

    `head` is what it waits for, None when nothing of it is open. Everything since `looked_back` is
    here, and what is first in line or died last; `before` is where the next look begins, None at
    the beginning of the outbox.
    """

    source: str
    topic: str
    key: str
    head: Head | None
    items: tuple[AxisItem, ...]
    looked_back: datetime | None = None
    before: int | None = None


def axis(
    connection: Connection,
    topic: str,
    key: str,
    *,
    source: str = "",
    before: int | None = None,
    seconds: float = 0.2,
) -> Axis:
    """What is first in line or died last, and what a look back finds.

    It looks so many seconds back from id `before`, else from the newest. Of another system only
    what is open or dead is looked for.
    """
    head = next(
        (each for each in heads(connection, topic=topic, key=key) if each.source == source), None
    )
    if source:
        return _foreign(connection, source, topic, key, head, before)
    where = {"topic": topic, "key": key}
    ids: list[int] = []
    if before is None:
        ids += connection.exec_driver_sql(query("axis_open"), where | {"most": FIRST}).scalars()
    oldest = first_sync(connection)
    newest: int = connection.exec_driver_sql(query("last_id")).scalar_one()
    until = newest if before is None else before - 1
    ends = time.monotonic() + seconds
    left = MOST
    while until >= oldest and left:
        window = where | {"after": until - WINDOW, "until": until, "most": left}
        newest_first = connection.exec_driver_sql(query("axis_window"), window).scalars().all()
        ids += newest_first
        left -= len(newest_first)
        until = until - WINDOW if left else newest_first[-1] - 1
        if time.monotonic() >= ends:
            break
    more = until >= oldest
    items = {"ids": sorted(set(ids)), "after": min(ids, default=0)}
    rows = connection.exec_driver_sql(query("axis_items"), items).all()
    looked_back = enqueued_first(connection, until if more else None)
    return Axis(
        source=source,
        topic=topic,
        key=key,
        head=head,
        items=_items(source, rows),
        looked_back=looked_back,
        before=until + 1 if more else None,
    )


def _foreign(
    connection: Connection,
    source: str,
    topic: str,
    key: str,
    head: Head | None,
    before: int | None,
) -> Axis:
    parameters = {"source": source, "topic": topic, "key": key, "before": before, "most": MOST + 1}
    rows = connection.exec_driver_sql(query("axis_foreign"), parameters).all()
    shown = rows[MOST - 1 :: -1]
    return Axis(
        source=source,
        topic=topic,
        key=key,
        head=head,
        items=_items(source, shown),
        before=shown[0][0] if len(rows) > MOST else None,
    )


def _items(source: str, rows: Sequence[Sequence[Any]]) -> tuple[AxisItem, ...]:
    items = [_item(source, row) for row in rows]
    earliest: int | None = None
    fate = False
    for index in range(len(items) - 1, -1, -1):
        item = items[index]
        without = item.status in ("pending", "published")
        late = item.applied is not None and earliest is not None and item.applied > earliest
        items[index] = replace(item, late=late, gap=without and fate)
        fate = fate or not without
        if item.applied is not None:
            earliest = item.applied if earliest is None else min(earliest, item.applied)
    return tuple(items)


def _item(source: str, row: Sequence[Any]) -> AxisItem:
    outbox_id, biz_type, enqueued, status, attempts, code, due, *rest = row
    partition, offset, applied, arrived, updated, resends = rest
    return AxisItem(
        outbox_id=name_of(source, outbox_id),
        biz_type=biz_type,
        enqueued=enqueued,
        status=status,
        attempts=attempts,
        error_code=code,
        due=due,
        partition=partition,
        offset=offset,
        applied=applied,
        arrived=arrived,
        updated=updated,
        resends=resends,
    )
