"""Messages, the newest first, with where each stands."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import msgspec

from streams.database import query as named
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
    parameters = {"before": query.before, "limit": query.limit + 1}
    rows = source.connection.exec_driver_sql(named("newest_messages"), parameters).all()
    lines = tuple(Line(*row) for row in rows[: query.limit])
    return Messages(lines, lines[-1].outbox_id if len(rows) > query.limit else None)


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
