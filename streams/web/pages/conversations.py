"""Who waits: conversations with open messages, the longest first, and for what in one sentence."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from streams.operate import look
from streams.operate.snapshot import Head
from streams.web.page import Page, Source
from streams.web.pages.parameters import Limit, Topic


class WaitingQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which conversations; `held`: only those that wait for an operator."""

    topic: Topic | None = None
    key: str | None = None
    held: bool = False
    limit: Limit = 100


@dataclass(frozen=True, slots=True)
class Waiting:
    """Conversations that wait; `more`: there are more than are here."""

    conversations: tuple[Head, ...]
    more: bool


def read(source: Source, query: WaitingQuery) -> Waiting:
    """Look for what has open messages."""
    heads = look.heads(
        source.connection, topic=query.topic, key=query.key, held=query.held, limit=query.limit + 1
    )
    return Waiting(heads[: query.limit], len(heads) > query.limit)


PAGE = Page(
    path="/conversations/",
    title="Conversations",
    about="Conversations that wait, the longest first.",
    query=WaitingQuery,
    gives=Waiting,
    read=read,
    template="conversations.html",
    command=lambda query: ("streams", "conversations", "list", *(["--held"] if query.held else [])),
    nav="conversations",
)
