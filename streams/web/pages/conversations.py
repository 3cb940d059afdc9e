"""Conversations that wait, the longest first."""

from __future__ import annotations

import msgspec

from streams import operate
from streams.web.page import Page, Source


class WaitingQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which conversations."""

    key: str | None = None
    held: bool = False


class Waiting(msgspec.Struct, frozen=True):
    """What waits, and behind what."""

    conversations: list[operate.Waiting]


def read(source: Source, query: WaitingQuery) -> Waiting:
    """Look for what has open messages."""
    return Waiting(operate.waiting(source.connection, key=query.key, held=query.held))


PAGE = Page(
    path="/",
    title="Conversations",
    about="Conversations that wait, the longest first.",
    query=WaitingQuery,
    gives=Waiting,
    read=read,
    template="conversations.html",
    command=lambda _: ("streams", "conversations", "list"),
    nav="conversations",
)
