"""Dead messages by cause."""

from __future__ import annotations

import msgspec

from streams import operate
from streams.web.page import Page, Source


class DeadQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which dead messages; what is not given lets everything through."""

    biz_type: str | None = None
    key: str | None = None
    error: str | None = None


class Dead(msgspec.Struct, frozen=True):
    """Causes, the most frequent first."""

    causes: list[operate.Group]


def read(source: Source, query: DeadQuery) -> Dead:
    """Group what fits."""
    choice = operate.Choice(biz_type=query.biz_type, key=query.key, error=query.error)
    return Dead(operate.groups(source.connection, choice))


PAGE = Page(
    path="/dead/",
    title="Dead letters",
    about="Dead messages by cause.",
    query=DeadQuery,
    gives=Dead,
    read=read,
    template="dead.html",
    command=lambda _: ("streams", "dead", "list", "--group"),
    nav="dead",
)
