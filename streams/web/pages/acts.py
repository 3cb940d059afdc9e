"""Who did what: every act of an operator, with its reason."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

import msgspec

from streams.operate import acts
from streams.operate.acts import Act
from streams.web import messages
from streams.web.messages import Response
from streams.web.page import Page, Source
from streams.web.pages.parameters import Before, Limit
from streams.web.rights import Right
from streams.web.routes import Call, Route

EXPORTED = 10_000
COLUMNS = ("id", "at", "who", "act", "count", "outbox_id", "operation", "why", "what")


class ActsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose acts, and which."""

    who: str | None = None
    act: str | None = None
    before: Before | None = None
    limit: Limit = 50


@dataclass(frozen=True, slots=True)
class Acts:
    """One page of acts, the newest first.

    `before` is where the next one begins, None on the last.
    """

    acts: list[Act]
    before: int | None


def read(source: Source, query: ActsQuery) -> Acts:
    """The acts that fit."""
    newest = acts.acts(
        source.connection, before=query.before, who=query.who, act=query.act, limit=query.limit + 1
    )
    shown = newest[: query.limit]
    return Acts(shown, shown[-1].id if len(newest) > query.limit else None)


async def export(call: Call) -> Response:
    """The same as CSV, the newest 10,000 that fit; the file's name says where older ones begin."""
    query = call.parameters(ActsQuery)
    found = await call.site.pool.run(
        lambda connection: acts.acts(
            connection, before=query.before, who=query.who, act=query.act, limit=EXPORTED + 1
        )
    )
    newest = found[:EXPORTED]
    name = f"acts-{newest[-1].id}-and-newer.csv" if len(found) > EXPORTED else "acts.csv"
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(COLUMNS)
    writer.writerows([cell(getattr(act, name)) for name in COLUMNS] for act in newest)
    return messages.text(
        lines.getvalue(), kind="text/csv", content_disposition=f'attachment; filename="{name}"'
    )


def cell(value: object) -> str:
    """A value as a spreadsheet shows it, and never as a formula."""
    if isinstance(value, dict):
        value = msgspec.json.encode(value).decode()
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def command(query: ActsQuery) -> tuple[str, ...]:
    """There is no command of ours: the table is a public interface."""
    return ("psql", "-c", "SELECT * FROM outbox_actions ORDER BY id DESC LIMIT 50")


PAGE = Page(
    path="/acts/",
    title="Acts",
    about="What operators did, and why.",
    query=ActsQuery,
    gives=Acts,
    read=read,
    template="acts.html",
    command=command,
    nav="acts",
)
EXPORT = Route("GET", "/acts/export", Right.VIEW, export, "What operators did, as CSV.")
