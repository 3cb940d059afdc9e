"""What is true of one conversation.

What it waits for, and every message of it on one axis of time.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from streams.operate import axis
from streams.operate.axis import Axis
from streams.web.page import Page, Source
from streams.web.pages.parameters import Before, Topic

FIRST_LOOK = 0.03
"""Seconds to look back before what is open is shown; whoever wants to see more asks for it."""
LOOK = 0.2


class ConversationQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which conversation.

    `source` names another system, `before` is where an earlier look ended.
    """

    topic: Topic
    key: Annotated[str, msgspec.Meta(min_length=1)]
    source: str = ""
    before: Before | None = None


def read(source: Source, query: ConversationQuery) -> Axis:
    """What is open or dead, and what a short look back finds; a longer one from there on."""
    with source.connection.begin():
        return axis.axis(
            source.connection,
            query.topic,
            query.key,
            source=query.source,
            before=query.before,
            seconds=FIRST_LOOK if query.before is None else LOOK,
        )


def command(query: ConversationQuery) -> tuple[str, ...]:
    """The command that tells the same."""
    other = ("--source", query.source) if query.source else ()
    return ("streams", "trace", "--key", query.key, *other)


PAGE = Page(
    path="/conversation",
    title="Conversation",
    about="One conversation: what it waits for, and its messages in order.",
    query=ConversationQuery,
    gives=Axis,
    read=read,
    template="conversation.html",
    command=command,
    nav="conversations",
)
