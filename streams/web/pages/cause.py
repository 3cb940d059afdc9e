"""One cause of death: what it means, since when, whom it hit, and what can be done."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from streams.operate import dead_letters, look
from streams.operate.dead_letters import DeadFilter, DeadPage
from streams.operate.meaning import Meaning, meaning
from streams.operate.snapshot import Cause
from streams.web.messages import Refusal
from streams.web.page import Page, Source
from streams.web.pages.parameters import Before, Fingerprint, Limit


class CauseQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which cause, and where its list of messages goes on."""

    fingerprint: Fingerprint
    before: Before | None = None
    limit: Limit = 50


@dataclass(frozen=True, slots=True)
class OneCause:
    """A cause, what its error code means, and its messages, those that died last first.

    A meaning of None: nobody knows.
    """

    cause: Cause
    meaning: Meaning | None
    page: DeadPage


def read(source: Source, query: CauseQuery) -> OneCause:
    """The cause of this name; Refusal when nothing is dead of it."""
    causes = look.causes(source.connection, fingerprint=query.fingerprint, sparklines=True)
    if not causes:
        raise Refusal(404, f"no message is dead of cause {query.fingerprint} now")
    which = DeadFilter(fingerprint=query.fingerprint)
    page = dead_letters.page(source.connection, which, before=query.before, limit=query.limit)
    return OneCause(causes[0], meaning(causes[0].error_code), page)


PAGE = Page(
    path="/dead/{fingerprint}",
    title="Cause",
    about="One cause of death and its messages.",
    query=CauseQuery,
    gives=OneCause,
    read=read,
    template="cause.html",
    command=lambda query: ("streams", "dead", "list", "--error", query.fingerprint),
    nav="dead",
)
