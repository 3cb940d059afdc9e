"""What broke: dead messages by cause, then one by one, without their text."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from streams.operate import dead_letters, look
from streams.operate.dead_letters import DeadFilter, DeadPage
from streams.operate.snapshot import Cause
from streams.web.page import Page, Source
from streams.web.pages.parameters import Before, Fingerprint, Limit, Since, Topic


class DeadQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which dead messages: what is not given lets everything through."""

    biz_type: str | None = None
    error_code: str | None = None
    cause: Fingerprint | None = None
    source: str | None = None
    topic: Topic | None = None
    key: str | None = None
    since: Since | None = None
    held: bool = False
    before: Before | None = None
    limit: Limit = 50

    @property
    def narrow(self) -> bool:
        """Whether it leaves any out."""
        return (
            bool(
                self.biz_type
                or self.error_code
                or self.cause
                or self.source
                or self.topic
                or self.key
                or self.since
            )
            or self.held
        )


@dataclass(frozen=True, slots=True)
class Dead:
    """Causes, the one that somebody died of last first, fifty at most.

    And the messages that fit the choice, those that died last first.
    """

    causes: tuple[Cause, ...]
    page: DeadPage


def page(source: Source, query: DeadQuery) -> DeadPage:
    """One page of the messages that fit."""
    which = DeadFilter(
        source=query.source,
        biz_type=query.biz_type,
        topic=query.topic,
        key=query.key,
        error_code=query.error_code,
        fingerprint=query.cause,
        since=query.since,
        held=query.held,
    )
    return dead_letters.page(source.connection, which, before=query.before, limit=query.limit)


def read(source: Source, query: DeadQuery) -> Dead:
    """Causes whatever is asked for, and the messages that fit."""
    causes = look.causes(source.connection, sparklines=True, memory=source.memory)
    return Dead(causes, page(source, query))


def command(query: DeadQuery) -> tuple[str, ...]:
    """The command that lists the same."""
    words = ["streams", "dead", "list"]
    named = {
        "--biz-type": query.biz_type,
        "--source": query.source,
        "--key": query.key,
        "--error": query.cause or query.error_code,
        "--since": query.since.isoformat() if query.since else None,
    }
    given = [word for name, value in named.items() if value for word in (name, value)]
    return (*words, *(given or ["--group"]))


PAGE = Page(
    path="/dead/",
    title="Dead letters",
    about="Dead messages: by cause, then one by one.",
    query=DeadQuery,
    gives=Dead,
    read=read,
    template="dead.html",
    command=command,
    nav="dead",
)
