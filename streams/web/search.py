"""The search box: everything that was typed may mean.

It jumps only when exactly one of that exists.
"""

from __future__ import annotations

from functools import partial

from sqlalchemy import Connection

from streams.operate.readings import Reading, readings
from streams.web import messages, page, render
from streams.web.messages import Response
from streams.web.rights import Right
from streams.web.routes import Call, Route


async def search(call: Call) -> Response:
    """All readings of what was typed."""
    text = call.given.get("q", "").strip()
    readings: list[Reading] = []
    if text:
        readings = await call.site.pool.run(partial(_read, text=text))
    existing = [reading for reading in readings if reading.exists]
    if len(existing) == 1:
        return messages.redirect(call.base + address(existing[0]))
    middle = render.page(
        "search.html", text=text, readings=readings, base=call.base, address=address
    )
    return messages.html(page.shell(call, title="Search", middle=middle, query_text=text))


def address(reading: Reading) -> str:
    """Where a reading leads, relative to the first page."""
    if reading.kind == "message":
        return f"messages/{reading.name}"
    if reading.kind == "cause":
        return f"dead/{reading.name}"
    if reading.kind == "code":
        return render.link("dead/", error_code=reading.name).unescape()
    return render.link(
        "conversation", topic=reading.topic, key=reading.name, source=reading.source
    ).unescape()


def _read(connection: Connection, text: str) -> list[Reading]:
    with connection.begin():
        return readings(connection, text)


ROUTES = (Route("GET", "/search", Right.VIEW, search, "What a word may mean."),)
