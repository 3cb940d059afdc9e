"""Messages, the newest first, with where each stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection

from streams.database import query as named
from streams.database.partitions import nearest_first
from streams.web.page import Page, Source
from streams.web.pages.parameters import Before, Limit


class MessagesQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the list goes on."""

    before: Before | None = None
    limit: Limit = 50


@dataclass(frozen=True, slots=True)
class Line:
    """One message; `updated` is when its fate changed last."""

    outbox_id: int
    biz_type: str
    topic: str
    key: str
    enqueued: datetime | None
    status: str
    attempts: int
    error_code: str | None
    updated: datetime | None


@dataclass(frozen=True, slots=True)
class Messages:
    """One page; `before` is where the next one begins, None on the last."""

    messages: tuple[Line, ...]
    before: int | None


def read(source: Source, query: MessagesQuery) -> Messages:
    """The newest messages from there on."""
    with source.connection.begin():
        rows = _newest(source.connection, query)
        shown = rows[: query.limit]
        ids = [row[0] for row in shown]
        bounds = {"ids": ids, "first": min(ids, default=0), "last": max(ids, default=0)}
        states = {
            row[0]: row[1:] for row in source.connection.exec_driver_sql(named("states_of"), bounds)
        }
    lines = tuple(_line(row, states.get(row[0])) for row in shown)
    return Messages(lines, ids[-1] if len(rows) > query.limit else None)


def _newest(connection: Connection, query: MessagesQuery) -> list[Sequence[Any]]:
    """At most one more than a page shows."""
    newest: int = connection.exec_driver_sql(named("last_id")).scalar_one()
    begin = newest if query.before is None else min(newest, query.before - 1)
    rows: list[Sequence[Any]] = []
    for after, until in nearest_first(begin, 0):
        asked = {"after": after, "until": until, "limit": query.limit + 1 - len(rows)}
        rows += connection.exec_driver_sql(named("newest_messages"), asked)
        if len(rows) > query.limit:
            break
    return rows


def _line(row: Sequence[Any], state: Sequence[Any] | None) -> Line:
    outbox_id, biz_type, topic, key, enqueued, published = row
    begun = ("published" if published else "pending", 0, None, None)
    return Line(outbox_id, biz_type, topic, key, enqueued, *(state or begun))


PAGE = Page(
    path="/messages/",
    title="Messages",
    about="Messages, the newest first.",
    query=MessagesQuery,
    gives=Messages,
    read=read,
    template="messages.html",
    command=lambda _: ("streams", "topic", "tail"),
    nav="messages",
)
