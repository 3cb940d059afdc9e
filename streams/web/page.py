"""Something to look at, in three shapes that cannot disagree.

They are a page, a call of the API, and a command.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any, Generic, TypeVar

import msgspec
from markupsafe import Markup
from sqlalchemy import Connection

from streams.database import query as named
from streams.errors import ServiceUnreachable, StreamsError
from streams.operate import faults
from streams.operate.look import Memory, Moment, moment
from streams.settings import Settings
from streams.terminal import printable
from streams.web import messages, render
from streams.web.messages import Response
from streams.web.pool import SILENT, DatabaseRefuses
from streams.web.rights import Right
from streams.web.routes import PART, Call, Route
from streams.web.shared import Answer

Q = TypeVar("Q", bound=msgspec.Struct)

MOST = 1000  # as the query counts
BADGES = ("dead", "conversations")  # as the query gives them


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A page that takes no parameters."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a page is read from."""

    connection: Connection
    settings: Settings
    memory: Memory = field(default_factory=Memory)


@dataclass(frozen=True, slots=True)
class Page(Generic[Q]):
    """One page; `path` may name a parameter of `query`.

    `/api` before it is its call, of `/` it is `/api/overview`.

    `read` finds what is shown, in a thread, on a read-only connection; `template` shows it, as
    `seen`. `command` is what shows the same on a terminal.

    `of_acts`: it is read where acts are done, if it can be. What somebody has just begun is there
    before a replica has it.
    """

    path: str
    title: str
    about: str
    query: type[Q]
    gives: Any
    read: Callable[[Source, Q], Any]
    template: str
    command: Callable[[Q], tuple[str, ...]]
    nav: str = ""
    live: bool = True
    of_acts: bool = False

    @property
    def routes(self) -> tuple[Route, Route]:
        """The page's route, and the API's."""
        api = f"/api{self.path}".rstrip("/") if self.path != "/" else "/api/overview"
        return (
            Route("GET", self.path, Right.VIEW, partial(_shown, self), self.about),
            Route(
                "GET",
                api,
                Right.VIEW,
                partial(_told, self),
                self.about,
                self.query,
                gives=self.gives,
            ),
        )


@dataclass(frozen=True, slots=True)
class _Made:
    """A page's middle, made once for everybody with the same rights.

    `why_old` is said of a replica that is behind.
    """

    seen: Any
    html: str
    etag: str
    at: datetime
    why_old: str | None


async def _shown(page: Page[Any], call: Call) -> Response:
    query = call.parameters(page.query)
    whole = not call.given.get(PART)
    # At once: a page that has to wait waits for both.
    try:
        answer, badges = await asyncio.gather(_made(page, call, query), _badges(call))
    except ServiceUnreachable as error:
        if not whole or isinstance(error, DatabaseRefuses):
            raise
        return _away(page, call, str(error).removeprefix(SILENT))
    made = answer.value
    headers = {"ETag": made.etag, **_age(answer)}
    if not whole:
        if badges is not None:
            headers["X-Counts"] = msgspec.json.encode(badges).decode()
        if call.request.header("if-none-match") == made.etag:
            return Response(304, b"", headers)
        return Response(
            200, made.html.encode(), {"Content-Type": "text/html; charset=utf-8", **headers}
        )
    text = shell(
        call,
        title=page.title,
        nav=page.nav,
        middle=made.html,
        live=page.live,
        figures_at=made.at,
        why_old=_why_old(answer),
        badges=badges or dict.fromkeys(BADGES, ""),
        command=shlex.join(page.command(query)),
        api=_api_address(page, call, query),
    )
    return Response(200, text.encode(), {"Content-Type": "text/html; charset=utf-8", **headers})


def _away(page: Page[Any], call: Call, reason: str) -> Response:
    """A page that has never had figures to show: it says why, and asks for them again."""
    fault = faults.database_away(reason)
    middle = render.page("away.html", title=page.title, fault=fault)
    text = shell(call, title=page.title, nav=page.nav, middle=middle, live=page.live)
    return messages.html(text, 503)


async def _told(page: Page[Any], call: Call) -> Response:
    query = call.parameters(page.query)
    answer = await _made(page, call, query)
    response = messages.json(answer.value.seen)
    return Response(200, response.body, {**response.headers, **_age(answer)})


async def _made(page: Page[Any], call: Call, query: msgspec.Struct) -> Answer[_Made]:
    site = call.site
    base = "../" * (page.path.count("/") - 1) or "./"

    given = {
        name: value for name, value in msgspec.structs.asdict(query).items() if value is not None
    }

    key = (page.path, query, call.who.rights)
    at_acts = (*key, "acts")
    before = site.shared.last(at_acts) or site.shared.last(key)
    last: _Made | None = before.value if before is not None else None

    def make(connection: Connection) -> _Made:
        with connection.begin():
            now = moment(connection)
        seen = page.read(Source(connection, site.settings, site.memory), query)
        # Making the page of it takes several times as long as finding out that it is the same.
        if last is not None and last.seen == seen:
            return replace(last, at=now.at, why_old=_behind(now))
        html = render.page(
            page.template, seen=seen, query=query, base=base, rights=call.who.rights, given=given
        )
        return _Made(seen, html, render.etag(html), now.at, _behind(now))

    if page.nav == "operations":
        site.operations.take_up()
    if page.of_acts and site.settings.web.database_url:
        # Who may look need not be able to act: they are shown what pages' own database has.
        with suppress(ServiceUnreachable):
            return await site.shared.get(at_acts, lambda: site.acts.run(make))
    return await site.shared.get(key, lambda: site.pool.run(make))


def _behind(now: Moment) -> str | None:
    if now.behind <= faults.BEHIND_SECONDS:
        return None
    return f"{render.sentence(faults.replica_behind(now.behind).title)}."


def _why_old(answer: Answer[_Made]) -> str | None:
    return answer.why_old or answer.value.why_old


def _age(answer: Answer[_Made]) -> dict[str, str]:
    """Headers that say of which moment the figures are, and why they are not newer."""
    headers = {"X-Figures-At": answer.value.at.isoformat(timespec="milliseconds")}
    if why := _why_old(answer):
        headers["X-Figures-Old"] = _plain(why)
    return headers


def _plain(text: str) -> str:
    """What a header can carry: one line of ASCII."""
    return printable(text).encode("ascii", "backslashreplace").decode()


async def _badges(call: Call) -> dict[str, str] | None:
    """What stands beside the names of pages; None where it cannot be had."""
    try:
        answer = await call.site.shared.get("badges", lambda: call.site.pool.run(_count))
    except StreamsError:
        return None
    return {
        name: f"{count:,}" if 0 < count < MOST else f"{MOST - 1}+" if count else ""
        for name, count in zip(BADGES, answer.value, strict=True)
    }


def _count(connection: Connection) -> tuple[int, int]:
    dead, holding = connection.exec_driver_sql(named("badges")).one()
    return dead, holding


def shell(call: Call, *, title: str, middle: str, nav: str = "", **more: Any) -> str:
    """The whole of a page around its middle."""
    web = call.site.settings.web
    values = {
        "live": False,
        "figures_at": None,
        "why_old": None,
        "command": None,
        "api": None,
        "query_text": "",
        "badges": dict.fromkeys(BADGES, ""),
        **more,
    }
    return render.page(
        "shell.html",
        title=title,
        nav=nav,
        middle=Markup(middle),
        base=call.base,
        identity=call.identity,
        has_login=call.site.access.has_login,
        environment=web.environment,
        colour=web.colour,
        **values,
    )


def _api_address(page: Page[Any], call: Call, query: msgspec.Struct) -> str:
    """The call of the API that gives the same, relative to the first page."""
    named = [part[1:-1] for part in page.path.split("/") if part.startswith("{")]
    address = page.routes[1].path.removeprefix("/")
    for name in named:
        address = address.replace(f"{{{name}}}", render.path(str(getattr(query, name))))
    given = {
        name: value
        for name, value in call.given.items()
        if value and name not in named and name != PART
    }
    return render.link(address, given).unescape()
