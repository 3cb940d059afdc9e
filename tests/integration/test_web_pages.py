"""Every page of a busy deployment: what it shows, what it never shows, and what its acts do."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import hypothesis
import psutil
import pytest
from hypothesis import HealthCheck
from hypothesis import strategies as st
from psycopg import sql
from sqlalchemy import Engine, event

from streams.database import connect_sync, partitions, sync_engine
from streams.dev.postgres import PostgresServer
from streams.settings import load
from streams.testing.services import copied
from streams.web import render, shared
from streams.web.messages import FORM, Request, Response
from streams.web.page import Page
from streams.web.pages import PAGES
from streams.web.pages import acts as acts_page
from streams.web.pool import DatabaseRefuses
from streams.web.routes import Route
from streams.web.site import Site
from streams.web.table import ROUTES
from tests.conftest import Eventually
from tests.fixtures.proxy import Proxy
from tests.fixtures.scene import BIDI, CANARY, HELD, RETRIED, TEXT, fill

MOST_BYTES = 60_000
ADDRESSES = {
    "/dead/{fingerprint}": "/dead/CAUSE",
    "/conversation": f"/conversation?topic=chat-history&key={HELD}",
    "/messages/{message}": "/messages/2012",
    "/operations/{operation}": "/operations/1",
}


@pytest.fixture
async def site(database: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """The pages of the scene, for a viewer, an operator and an admin by token.

    Whoever asks waits for a new answer, however busy the machine is: an old one is not what these
    tests are about.
    """
    fill(database)
    monkeypatch.setattr(shared, "WAIT_SECONDS", 20.0)
    monkeypatch.setattr(shared, "FIRST_SECONDS", 20.0)
    tokens = {
        role: {"sha256": hashlib.sha256(role.encode()).hexdigest(), "role": role} for role in ROLES
    }
    site = Site(load(environ={"DATABASE_URL": database, "STREAMS_WEB__TOKENS": json.dumps(tokens)}))
    yield site
    await site.close()


@pytest.fixture(scope="module")
def silent(postgres: PostgresServer, streams_template: str) -> Iterator[str]:
    """The URL of a database in which there is nothing."""
    with copied(postgres, streams_template) as url:
        yield url


@pytest.fixture
async def quiet(silent: str) -> AsyncIterator[Site]:
    """The pages of a database in which there is nothing to act on, shared by all."""
    tokens = {"admin": {"sha256": hashlib.sha256(b"admin").hexdigest(), "role": "admin"}}
    environ = {"DATABASE_URL": silent, "STREAMS_WEB__TOKENS": json.dumps(tokens)}
    site = Site(load(environ=environ))
    yield site
    await site.close()


ROLES = ("viewer", "operator", "admin")


async def get(
    site: Site, address: str, *, accept: str = "text/html", role: str = "viewer"
) -> Response:
    path, _, query = address.partition("?")
    headers = [("host", "127.0.0.1"), ("accept", accept), ("authorization", f"Bearer {role}")]
    return await site.answer(Request("GET", path, query, headers=headers, peer="127.0.0.1"))


async def post(site: Site, path: str, *, role: str = "admin", **form: str) -> Response:
    headers = [("host", "127.0.0.1"), ("authorization", f"Bearer {role}"), ("content-type", FORM)]
    body = urlencode(form).encode()
    return await site.answer(Request("POST", path, headers=headers, body=body, peer="127.0.0.1"))


def address_of(page: Page[Any], cause: str) -> str:
    return ADDRESSES.get(page.path, page.path).replace("CAUSE", cause)


async def test_every_page_shows_what_its_call_tells_and_no_text(site: Site) -> None:
    causes = json.loads((await get(site, "/api/dead", accept="*/*")).body)["causes"]
    cause = next(each["fingerprint"] for each in causes if each["error_code"] == "23503")
    await post(site, "/api/operations/replay", error=cause, why=CANARY)
    for page in PAGES:
        address = address_of(page, cause)
        answer = await get(site, address)
        text = answer.body.decode()
        assert answer.status == 200, (address, text[-500:])
        assert len(answer.body) < MOST_BYTES, address
        # Nothing runs, nothing turns letters around, nothing a user wrote, no word of a template
        # that is not filled.
        assert CANARY not in text and BIDI not in text and TEXT not in text, address
        assert "None" not in re.sub(r"<[^>]*>", " ", text), address
        assert text.count("<h1") == 1, address
        call = "api" + address.rstrip("/") if address != "/" else "api/overview"
        told = await get(site, f"/{call}", accept="*/*")
        assert told.status == 200 and json.loads(told.body), address
        assert TEXT not in told.body.decode(), address
        live = await get(site, address + ("&" if "?" in address else "?") + "part=live")
        assert live.body.decode().strip() in text, address
        # The page names that call and a command.
        assert f"GET {call}".split("?")[0] in text.replace("&amp;", "&"), address
        assert "The same on a terminal" in text, address


async def test_pages_and_sql_agree(site: Site, database: str) -> None:
    overview = json.loads((await get(site, "/api/overview", accept="*/*")).body)
    dead = json.loads((await get(site, "/api/dead", accept="*/*")).body)
    with connect_sync(database) as connection:
        counts = dict(
            connection.execute("SELECT status, count(*) FROM outbox_state GROUP BY 1").fetchall()
        )
    totals = overview["snapshot"]["totals"]
    assert {name: totals[name] for name in ("dead", "retrying", "parked")} == {
        name: counts[name] for name in ("dead", "retrying", "parked")
    }
    assert sum(cause["messages"] for cause in dead["causes"]) == counts["dead"]
    page = (await get(site, "/")).body.decode()
    assert re.search(rf"<span>dead</span><b>{counts['dead']}</b>", page)


async def test_a_conversation_says_what_it_waits_for(site: Site) -> None:
    held = (await get(site, f"/conversation?topic=chat-history&key={HELD}")).body.decode()
    assert re.search(
        r"Held by dead message .*2012.*waits for you to replay, discard or release it", held
    )
    assert "24 messages wait behind it" in re.sub(r"\s+", " ", held)
    retried = (await get(site, f"/conversation?topic=chat-history&key={RETRIED}")).body.decode()
    assert re.search(r"failed 4 times with <code>OSError</code>; next try <time", retried)
    nothing = await get(site, "/conversation?topic=likes&key=nobody")
    assert (nothing.status, b"Nothing of this conversation waits" in nothing.body) == (200, True)
    for key in (CANARY, BIDI, "a/b", "ключ", "x" * 1024):
        answer = await get(site, f"/conversation?topic=chat-history&key={quote(key)}")
        assert answer.status == 200, key
        assert CANARY not in answer.body.decode() and BIDI not in answer.body.decode()


@pytest.mark.parametrize(
    ("address", "status", "line"),
    [
        ("/messages/999999", 404, "there is no message 999999"),
        ("/messages/abc", 400, "'message' is 'abc': expected an outbox id"),
        ("/messages/0", 400, "'message' is '0': expected an id"),
        ("/messages/9999999999999999999", 400, "expected an id of at most 2^63 - 1"),
        ("/messages/seed:7", 404, "there is no message seed:7"),
        ("/dead/00000000", 404, "no message is dead of cause 00000000 now"),
        ("/dead/xyz", 400, "'fingerprint' is 'xyz': expected 8 hex digits"),
        ("/dead/?limit=1000", 400, "'limit' is '1000': expected"),
        ("/dead/?since=yesterday", 400, "'since' is 'yesterday': expected"),
        ("/conversation?key=a", 400, "'topic' is '': expected a value, got none"),
        ("/?span=2h", 400, "'span' is '2h': expected one of 10m, 1h, 24h, 7d"),
        ("/acts/?before=-1", 400, "'before' is '-1': expected"),
    ],
)
async def test_a_wrong_request_is_answered_in_one_line(
    site: Site, address: str, status: int, line: str
) -> None:
    call = "/api" + address.replace("/?", "?" if address[1] != "?" else "/overview?")
    told = await get(site, call, accept="*/*")
    shown = await get(site, address)
    assert (told.status, shown.status) == (status, status)
    assert line in json.loads(told.body)["error"]


ODD = st.one_of(
    st.sampled_from(
        [
            "",
            "0",
            "-1",
            "1",
            "true",
            "10m",
            "9" * 30,
            "1e9",
            "../..",
            "2026-01-01T00:00:00Z",
            CANARY,
            BIDI,
        ]
    ),
    st.text(max_size=40),
)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
async def test_nothing_that_is_sent_makes_a_page_fail(quiet: Site, route: Route) -> None:
    names = [*(route.takes.__struct_fields__ if route.takes else ()), "part", "q", "nobody_knows"]
    given = st.dictionaries(st.sampled_from(names), ODD, max_size=4)
    seen: list[tuple[dict[str, str], str]] = []

    @hypothesis.settings(
        max_examples=12, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @hypothesis.given(given, ODD)
    def choose(form: dict[str, str], part: str) -> None:
        seen.append((form, part))

    choose()
    for form, part in seen:
        path = "/".join(
            part.replace("/", "") if "{" in word else word for word in route.path.split("/")
        )
        query = urlencode({name: value.encode(errors="replace") for name, value in form.items()})
        body = query.encode() if route.method == "POST" else b""
        headers = [
            ("host", "127.0.0.1"),
            ("authorization", "Bearer admin"),
            ("content-type", FORM),
            ("accept", "*/*"),
        ]
        asked = Request(
            route.method, path, "" if body else query, headers=headers, body=body, peer="127.0.0.1"
        )
        answer = await quiet.answer(asked)
        assert answer.status < 500, (path, form, answer.body)


BUSY = """
INSERT INTO outbox (biz_type, topic, key, payload)
SELECT 'chat_history_persist', 'chat-history', 'busy', '{}' FROM generate_series(1, 1500);
INSERT INTO outbox_state (outbox_id, status, partition, "offset", attempts, topic, key, error_code,
                          error, arrived)
SELECT id, CASE WHEN row_number() OVER (ORDER BY id) = 1 THEN 'dead' ELSE 'parked' END, 3, id, 0,
       topic, key, '23503', 'it failed', nextval('outbox_arrived')
FROM outbox WHERE key = 'busy' ORDER BY id LIMIT 1000;
INSERT INTO outbox_foreign (source, outbox_id, biz_type, topic, key, status, partition, "offset",
                            error_code, error, open, arrived, payload)
SELECT 'crm', n, 'chat', 'chat-history', 'busy', CASE n WHEN 1 THEN 'dead' ELSE 'parked' END, 3, n,
       '23503', 'it failed', true, nextval('outbox_arrived'), '{}'
FROM generate_series(1, 1000) AS n
"""


async def test_a_conversation_of_very_many_messages_is_shown_a_piece_at_a_time(
    site: Site, database: str
) -> None:
    with connect_sync(database) as connection:
        for statement in BUSY.split(";\n"):
            connection.execute(statement.encode())
        ids = {
            "": [id for (id,) in connection.execute("SELECT id FROM outbox WHERE key = 'busy'")],
            "crm": [f"crm:{number}" for number in range(1, 1001)],
        }
    for source, every in ids.items():
        address = f"/conversation?topic=chat-history&key=busy&source={source}"
        page = await get(site, address)
        assert len(page.body) < MOST_BYTES, source
        assert b"Held by dead message" in page.body and b"999 messages wait" in page.body, source
        seen: list[list[int | str]] = []
        before: int | None = None
        while not seen or before is not None:
            more = f"&before={before}" if before is not None else ""
            part = json.loads((await get(site, f"/api{address}{more}", accept="*/*")).body)
            seen.append([item["outbox_id"] for item in part["items"]])
            before = part["before"]
            assert len(seen[-1]) <= 150
        # The first in line are here at once, and looking back finds every one.
        assert seen[0][0] == every[0] or source
        assert {name for names in seen for name in names} == set(every), source
        assert all(names == sorted(names, key=every.index) for names in seen)


async def test_partitions_are_those_of_the_group_alone(site: Site, database: str) -> None:
    with connect_sync(database) as connection:
        connection.execute(
            'INSERT INTO outbox_lag ("group", topic, partition, committed, end_offset, moved, at)'
            " VALUES ('former', 'likes', 0, 0, 800, now(), now())"
        )
    workers = json.loads((await get(site, "/api/workers", accept="*/*")).body)
    assert {part["group"] for part in workers["partitions"]} == {"outbox-streams"}
    told = (await get(site, "/metrics/cluster", accept="*/*")).body.decode()
    assert re.findall(r'outbox_lag_records{partition="0",topic="likes"} (.*)', told) == ["0.0"]
    overview = json.loads((await get(site, "/api/overview", accept="*/*")).body)
    assert len(overview["snapshot"]["partitions"]) == 11


async def test_a_held_conversation_of_another_system_is_searched_for_and_released(
    site: Site, database: str
) -> None:
    with connect_sync(database) as connection:
        connection.execute(
            "INSERT INTO outbox_foreign (source, outbox_id, biz_type, topic, key, status,"
            " error_code, error, open, arrived, payload)"
            " VALUES ('crm', 5, 'orders', 'orders', 'order-1', 'dead', '23505', 'e', true,"
            " nextval('outbox_arrived'), '{}')"
        )
    found = await get(site, "/search?q=order-1")
    where = found.headers["Location"]
    assert where == "./conversation?topic=orders&key=order-1&source=crm"
    page = (await get(site, where.lstrip("."), role="operator")).body.decode()
    assert "Held by dead message" in page and "Release the conversation" in page
    # Where a conversation of ours has that key too, both are named.
    with connect_sync(database) as connection:
        connection.execute(
            "UPDATE outbox_foreign SET topic = 'chat-history', key = 'conversation-12'"
        )
    both = (await get(site, f"/search?q={HELD}")).body.decode()
    assert "source=crm" in both and "of topic chat-history, system crm" in both
    assert 'key=conversation-12"' in both
    with connect_sync(database) as connection:
        connection.execute("UPDATE outbox_foreign SET topic = 'orders', key = 'order-1'")
    form = {"topic": "orders", "key": "order-1", "why": "it was shipped"}
    done = await post(site, "/conversation/release", role="operator", **form)
    assert done.headers["Location"] == "../conversation?topic=orders&key=order-1&source=crm"


async def test_search_jumps_only_to_what_exists_alone(site: Site) -> None:
    async def to(text: str) -> str | None:
        return (await get(site, f"/search?q={quote(text)}")).headers.get("Location")

    assert await to("2012") == "./messages/2012"
    assert await to(HELD) == f"./conversation?topic=chat-history&key={HELD}"
    assert await to("23503") == "./dead/?error_code=23503"
    assert await to("nothing-of-ours") is None
    assert await to("") is None
    text = (await get(site, f"/search?q={quote(CANARY)}")).body.decode()
    assert CANARY not in text


async def test_lists_go_on_where_they_ended(site: Site) -> None:
    for path, key, name in (
        ("/api/dead", "page", "outbox_id"),
        ("/api/messages", "messages", "outbox_id"),
    ):
        seen: list[int] = []
        before = ""
        while True:
            answer = json.loads((await get(site, f"{path}?limit=60{before}", accept="*/*")).body)
            part = answer["page"] if key == "page" else answer
            rows = part["rows"] if key == "page" else part["messages"]
            seen += [row[name] for row in rows]
            if part["before"] is None or len(seen) > 400:
                break
            before = f"&before={part['before']}"
        assert len(seen) == len(set(seen)) and len(seen) > 100, path


async def test_acts_are_done_once_and_written_down(
    site: Site, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def query(statement: str) -> list[tuple[Any, ...]]:
        with connect_sync(database) as connection:
            return connection.execute(statement.encode()).fetchall()

    # Without a reason, or the right, nothing is done.
    assert (await post(site, "/api/messages/2012/replay")).status == 400
    assert (await post(site, "/api/messages/2012/replay", role="viewer", why="x")).status == 403
    assert (await post(site, "/api/messages/2012/discard", role="operator", why="x")).status == 403
    assert (await post(site, "/api/messages/2012/text", role="operator")).status == 403
    acts = query("SELECT count(*) FROM outbox_actions")

    # A message's text, on demand: who looked is written down before it is shown.
    told = json.loads((await post(site, "/api/messages/2012/text")).body)
    assert told == {"message": 2012, "text": '{"text" : "canary-text 2012"}'}
    page = (await post(site, "/messages/2012/text")).body.decode()
    assert "canary-text 2012" in page
    assert query("SELECT who, act, outbox_id FROM outbox_actions ORDER BY id DESC LIMIT 1") == [
        ("token admin", "read text", 2012)
    ]

    # A held conversation goes on; a second time there is nothing to let go.
    form = {"topic": "chat-history", "key": HELD, "why": "was cancelled"}
    held = f"/conversation?topic=chat-history&key={HELD}"
    assert b"waits for you to replay" in (await get(site, held)).body
    answer = await post(site, "/conversation/release", role="operator", **form)
    assert (answer.status, answer.headers["Location"]) == (
        303,
        f"../conversation?topic=chat-history&key={HELD}",
    )
    # Who is led there sees what came of it.
    assert b"waits for you to replay" not in (await get(site, held)).body
    again = await post(site, "/api/conversation/release", role="operator", **form)
    assert (again.status, "no dead message holds" in json.loads(again.body)["error"]) == (409, True)

    # A dead message is replayed once, another one given up.
    assert (await post(site, "/messages/2012/replay", role="operator", why="mended")).headers[
        "Location"
    ] == "../../messages/2012"
    assert (
        await post(site, "/api/messages/2012/replay", role="operator", why="mended")
    ).status == 409
    assert json.loads((await post(site, "/api/messages/43/discard", why="spam")).body) == {
        "act": "discard",
        "messages": [43],
    }
    assert query(
        "SELECT status FROM outbox_state WHERE outbox_id IN (2012, 43) ORDER BY outbox_id"
    ) == [
        ("discarded",),
        ("replaying",),
    ]
    assert query("SELECT count(*) FROM outbox_actions")[0][0] == acts[0][0] + 5

    # With another payload: the difference first, checked like any enqueue.
    chat = {"user_id": 7, "conversation_id": "conversation-3", "role": "user", "message": "fixed"}
    form = {"payload": json.dumps(chat), "why": "fixed by hand"}
    page = (await post(site, "/messages/83/edit", **form)).body.decode()
    # Whoever sees it has read the text; and of a message that is not dead nobody does.
    assert query("SELECT act FROM outbox_actions WHERE outbox_id = 83") == [("read text",)]
    consumed = query("SELECT min(outbox_id) FROM outbox_state WHERE status = 'consumed'")[0][0]
    refused = await post(site, f"/messages/{consumed}/edit", **form)
    assert (refused.status, b"canary-text" in refused.body) == (409, False)
    assert '<span class="old">-   &#34;text&#34;: &#34;canary-text 83&#34;</span>' in page
    assert '<span class="new">+   &#34;user_id&#34;: 7,</span>' in page
    assert query("SELECT status FROM outbox_state WHERE outbox_id = 83") == [("dead",)]
    wrong = await post(
        site, "/api/messages/83/edit", payload=json.dumps(chat | {"conversation_id": "x"}), why="y"
    )
    assert (wrong.status, b"expected 'conversation-3'" in wrong.body) == (400, True)
    assert (await post(site, "/api/messages/83/edit", payload="{", why="y")).status == 400
    # Who confirms has compared it with the text that it replaces, and with no other one.
    [compared] = re.findall('name="compared" value="([0-9a-f]{64})"', page)
    other = await post(site, "/messages/83/edit", **form, confirmed="1", compared="0" * 64)
    assert (other.status, b"was edited since you compared it" in other.body) == (409, True)
    assert query("SELECT status FROM outbox_state WHERE outbox_id = 83") == [("dead",)]
    form["compared"] = compared
    assert (await post(site, "/messages/83/edit", **form, confirmed="1")).headers[
        "Location"
    ] == "../../messages/83"
    assert query("SELECT payload::text FROM outbox WHERE resend_of = 83") == [
        (json.dumps(chat, separators=(",", ":")),)
    ]

    # The trail as CSV: nothing in it is a formula.
    lines = (await get(site, "/acts/export")).body.decode().splitlines()
    assert lines[0].startswith("id,at,who,act")
    assert any("'=amy" in line for line in lines)
    # A file that is not all says where it ends.
    monkeypatch.setattr(acts_page, "EXPORTED", 2)
    part = await get(site, "/acts/export")
    [_, _, last] = part.body.decode().splitlines()
    ends = last.partition(",")[0]
    assert f'filename="acts-{ends}-and-newer.csv"' in part.headers["Content-Disposition"]
    rest = (await get(site, f"/acts/export?before={ends}")).body.decode().splitlines()
    assert int(rest[1].partition(",")[0]) < int(ends)


async def test_what_cannot_be_done_says_why_and_nothing_is_done_twice(
    site: Site, database: str
) -> None:
    def query(statement: str) -> list[tuple[Any, ...]]:
        with connect_sync(database) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def line(response: Response) -> tuple[int, str]:
        return response.status, json.loads(response.body)["error"]

    # Filters that fit nothing: an empty page, and no act.
    for path in ("/dead/?biz_type=gone", "/dead/?error_code=none", "/conversations/?topic=gone"):
        assert (await get(site, path)).status == 200, path
    gone = await post(site, "/api/operations/replay", biz_type="gone", why="x")
    assert line(gone) == (400, "no dead message fits: nothing to do")
    # What is not looked for is not left out either.
    unknown = await post(site, "/api/operations/replay", topic="likes", limit="1", why="x")
    assert line(unknown)[0] == 400 and "unknown parameter 'topic'" in line(unknown)[1]
    assert (await get(site, "/?projection=gone")).status == 400

    # Four operators at once: one of them replays it, the others are told that it is not dead.
    acts = query("SELECT count(*) FROM outbox_actions")[0][0]
    answers = await asyncio.gather(
        *(post(site, "/api/messages/43/replay", role="operator", why="mended") for _ in range(4))
    )
    assert sorted(each.status for each in answers) == [200, 409, 409, 409]
    said = {line(each)[1] for each in answers if each.status == 409}
    assert said <= {
        "message 43 is no longer dead: nothing was done",
        "message 43 is replaying, expected dead: nothing was done",
    }
    assert query("SELECT count(*) FROM outbox WHERE resend_of = 43") == [(1,)]
    assert query("SELECT count(*) FROM outbox_actions") == [(acts + 1,)]

    # Its biz_type is gone since: it can be looked at and replayed all the same.
    query("UPDATE outbox_biz_types SET retired_at = now() WHERE biz_type = 'likes'")
    [(retired,)] = query("SELECT min(outbox_id) FROM outbox_dead_letters WHERE biz_type = 'likes'")
    assert (await get(site, f"/messages/{retired}")).status == 200
    answer = await post(site, f"/api/messages/{retired}/replay", role="operator", why="mended")
    assert answer.status == 200, answer.body

    # Pages that are newer than their database say what to do.
    query("ALTER TABLE outbox_open RENAME TO of_tomorrow")
    site.shared.renew()
    status, missing = line(await get(site, "/api/overview", accept="*/*"))
    assert status == 503
    assert 'relation "outbox_open" does not exist; `streams migrate`' in missing
    query("ALTER TABLE of_tomorrow RENAME TO outbox_open")

    # Where nothing can be written nothing is done, and pages are shown as ever.
    name = query("SELECT current_database()")[0][0]
    query(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    site.acts.close()
    site.pool.close()
    site.shared.renew()
    answer = await post(site, "/api/messages/83/replay", role="operator", why="mended")
    assert line(answer) == (503, "the database takes no writes now")
    overview = await get(site, "/")
    assert overview.status == 200 and b"takes no writes" in overview.body


async def test_a_page_of_what_has_not_changed_is_not_made_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    make = render.page

    def counted(template: str, **values: Any) -> str:
        made.append(template)
        return make(template, **values)

    monkeypatch.setattr(render, "page", counted)
    for path, template in (("/dead/", "dead.html"), ("/workers/", "workers.html")):
        answers = []
        for _ in range(3):
            answers.append((await get(site, f"{path}?part=live")).headers)
            site.shared.renew()
        assert made.count(template) == 1, path
        assert len({each["ETag"] for each in answers}) == 1
        assert len({each["X-Figures-At"] for each in answers}) == 3
    await post(site, "/api/messages/43/discard", why="spam")
    await get(site, "/dead/?part=live")
    assert made.count("dead.html") == 2


async def test_thousands_of_partitions_leave_a_page_short(site: Site, database: str) -> None:
    with connect_sync(database) as connection:
        connection.execute(
            'INSERT INTO outbox_lag ("group", topic, partition, committed, end_offset, log_start,'
            " at) SELECT 'outbox-streams', 'topic-' || t, p, 10, 10 + (t = 7)::int * 500, 0, now()"
            " FROM generate_series(1, 300) AS t, generate_series(0, 7) AS p"
        )
        # A name as long as a host may give itself.
        connection.execute("UPDATE outbox_processes SET host = repeat('w', 253) WHERE runs > 0")
    page = (await get(site, "/workers/")).body
    assert len(page) < 2 * MOST_BYTES
    assert page.count(b">topic-7<") == 8 and b"more, which are less urgent" in page
    told = json.loads((await get(site, "/api/workers", accept="*/*")).body)
    assert len(told["partitions"]) == 2400 + 11


async def test_a_clock_that_was_set_back_fails_no_page(site: Site, database: str) -> None:
    """Everything was written tomorrow."""
    with connect_sync(database) as connection:
        columns = connection.execute(
            "SELECT c.oid::regclass::text, a.attname FROM pg_class AS c"
            " JOIN pg_attribute AS a ON a.attrelid = c.oid"
            " WHERE c.relname ~ '^(outbox|relay)' AND c.relkind IN ('r', 'p')"
            " AND NOT c.relispartition AND a.atttypid IN ('timestamptz'::regtype,"
            " 'timestamp'::regtype) AND NOT a.attisdropped"
        ).fetchall()
        assert len(columns) > 30
        for table, column in columns:
            connection.execute(
                sql.SQL("UPDATE {0} SET {1} = {1} + interval '1 day'").format(
                    sql.SQL(table), sql.Identifier(column)
                )
            )
        [(cause,)] = connection.execute(
            "SELECT fingerprint FROM outbox_dead_letters WHERE outbox_id = 2012"
        ).fetchall()
    for page in PAGES:
        if page.path.startswith("/operations/{"):
            continue
        answer = await get(site, address_of(page, cause))
        text = re.sub(r"<[^>]*>", " ", answer.body.decode())
        assert answer.status == 200, (page.path, text[-500:])
        assert not re.search(r"\s-\d[\d.,]* (ms|s|min|h|d)\b", text), page.path
    assert (await get(site, "/metrics/cluster")).status == 200


async def test_an_operation_does_what_its_preview_said_and_stops_by_itself(
    site: Site, database: str, eventually: Eventually
) -> None:
    def query(statement: str) -> list[tuple[Any, ...]]:
        with connect_sync(database) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    async def told(path: str, **form: str) -> Any:
        answer = await post(site, f"/api/operations/{path}", role="operator", **form)
        return json.loads(answer.body) | {"status": answer.status}

    [(cause, count)] = query(
        "SELECT fingerprint, count(*) FROM outbox_dead_letters WHERE error_code = 'payload'"
        " GROUP BY 1 ORDER BY 2 DESC LIMIT 1"
    )
    assert (await told("replay", why="x"))["error"].startswith("expected a filter")
    assert (await told("try", why="x", error=cause))[
        "error"
    ] == "'limit' is None: expected 1, try one"
    assert (await told("discard", why="x", error=cause))["status"] == 403
    assert (await told("99/submit"))["error"].startswith("there is no operation 99")

    # A person is led to the preview, which says what will happen; nothing is done.
    answer = await post(site, "/operations/replay", role="operator", error=cause, why="mended")
    assert (answer.status, answer.headers["Location"]) == (303, "../operations/1")
    text = (await get(site, "/operations/1", role="operator")).body.decode()
    assert f"exactly these <b>{count} messages</b> will be sent again" in text
    assert query("SELECT count(*) FROM outbox_state WHERE status = 'replaying'") == [(0,)]

    # What is no longer dead as it was is noticed; another preview is of what there is.
    query(
        "UPDATE outbox_state SET status = 'discarded' WHERE outbox_id ="
        f" (SELECT min(outbox_id) FROM outbox_dead_letters WHERE fingerprint = '{cause}')"
    )
    assert "preview it again" in (await told("1/submit"))["error"]
    assert (await told("replay", error=cause, why="mended"))["planned"] == count - 1
    assert (await told("2/submit"))["state"] == "running"
    # Twice does nothing more.
    assert (await told("2/submit"))["state"] == "running"

    # One goes first; it dies again, and the operation stops by itself and says why.
    sent = "SELECT outbox_id FROM outbox_state WHERE status = 'replaying'"
    [(first,)] = await eventually(lambda: query(sent))
    query(
        "UPDATE outbox_state SET status = 'dead', topic = NULL, key = NULL"
        f" WHERE outbox_id = {first}"
    )
    stopped = (
        "SELECT state, failed, reason FROM outbox_operations WHERE id = 2 AND state <> 'running'"
    )
    assert await eventually(lambda: query(stopped)) == [
        ("stopped", 1, "1 of 1 messages of this step failed again")
    ]
    text = (await get(site, "/operations/2")).body.decode()
    assert "1 of 1 messages of this step failed again" in text
    assert query(sent) == []
    listed = (await get(site, "/operations/")).body.decode()
    assert "operations/2" in listed and "operations/1" not in listed

    # Who may not discard lets no discard be worked, neither begun nor stopped.
    discarding = json.loads(
        (await post(site, "/api/operations/discard", error=cause, why="gone")).body
    )["id"]
    refused = await told(f"{discarding}/submit")
    assert (refused["status"], "needs the right discard" in refused["error"]) == (403, True)
    query(f"UPDATE outbox_operations SET state = 'stopped' WHERE id = {discarding}")
    refused = await told(f"{discarding}/resume")
    assert (refused["status"], "needs the right discard" in refused["error"]) == (403, True)
    for role, shown in (("operator", False), ("admin", True)):
        text = (await get(site, f"/operations/{discarding}", role=role)).body.decode()
        assert (f"operations/{discarding}/resume" in text) is shown


async def test_without_a_database_the_last_figures_stay_with_their_age(
    site: Site, database: str
) -> None:
    first = await get(site, "/dead/")
    assert (first.status, "X-Figures-Old" in first.headers) == (200, False)
    site.pool.close()
    site.pool._url = lambda: "postgresql://nobody@127.0.0.1:1/none"
    shared = site.shared._entries
    for entry in shared.values():
        entry.at -= 30
    old = await get(site, "/dead/")
    assert old.status == 200
    assert "PostgreSQL does not answer" in old.headers["X-Figures-Old"]
    assert b'class="grey stale"' in old.body and b"What you see is old" in old.body
    assert old.headers["X-Figures-At"] == first.headers["X-Figures-At"]
    never = await get(site, "/workers/")
    # What was never seen says what to do, and asks again by itself.
    assert (never.status, b"The database does not answer: connection" in never.body) == (503, True)
    assert b"look at PostgreSQL and at DATABASE_URL" in never.body and b"data-live" in never.body


async def test_a_database_that_falls_silent_costs_a_second_and_is_back_when_it_is_back(
    database: str,
) -> None:
    fill(database)
    with Proxy(database) as network:
        site = Site(load(environ={"DATABASE_URL": network.url("postgres")}))

        async def ask(address: str) -> tuple[Response, float]:
            began = time.monotonic()
            path, _, query = address.partition("?")
            headers = [("host", "127.0.0.1"), ("accept", "text/html")]
            response = await site.answer(
                Request("GET", path, query, headers=headers, peer="127.0.0.1")
            )
            return response, time.monotonic() - began

        assert (await ask("/dead/"))[0].status == 200
        network.blackhole()
        # Several pages at once, so that every connection hangs.
        await asyncio.gather(ask("/workers/"), ask("/acts/"), ask("/proof/"))
        waited: list[float] = []
        # A machine that has more to do may hold up one of them; who waited for the database itself
        # would be held up each time.
        while not waited or (min(waited) >= 1.5 and len(waited) < 10):
            for entry in site.shared._entries.values():
                entry.at -= 2  # older than a page may be without being asked for again
            old, seconds = await ask("/dead/")
            assert (old.status, "X-Figures-Old" in old.headers) == (200, True)
            waited.append(seconds)
        assert min(waited) < 1.5
        network.heal()

        async def fresh() -> bool:
            return "X-Figures-Old" not in (await ask("/dead/"))[0].headers

        # A connection that hangs is given up after three and a half seconds, and another one made.
        async with asyncio.timeout(20):
            while not await fresh():
                await asyncio.sleep(0.2)
        await site.close()


def connections(database: str) -> int:
    """How many the pages have to this database: the server ends one a moment after its client."""
    with connect_sync(database) as connection:
        [(count,)] = connection.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE application_name = 'outbox-streams pages' AND datname = current_database()"
        ).fetchall()
    return int(count)


async def test_pages_have_two_connections_and_give_them_back(
    site: Site, database: str, eventually: Eventually
) -> None:
    await asyncio.gather(*(get(site, page.path) for page in PAGES if "{" not in page.path))
    assert 1 <= connections(database) <= 2
    # Each is one of the server's processors at most, whatever a statement would be worth to it.
    shown = "SHOW max_parallel_workers_per_gather"
    assert await site.pool.run(lambda one: one.exec_driver_sql(shown).scalar_one()) == "0"
    with pytest.raises(DatabaseRefuses, match="takes no writes"):
        await site.pool.run(
            lambda connection: connection.exec_driver_sql("DELETE FROM outbox_actions")
        )
    site.pool.rest()
    await eventually(lambda: connections(database) == 0)


async def test_an_audit_that_cannot_be_done_says_why(database: str) -> None:
    token = {"admin": {"sha256": hashlib.sha256(b"admin").hexdigest(), "role": "admin"}}
    environ = {
        "DATABASE_URL": database,
        "STREAMS_AGENTS": "[no_such_agents]",
        "STREAMS_WEB__TOKENS": json.dumps(token),
    }
    site = Site(load(environ=environ))
    assert b"Nobody asked for one" in (await get(site, "/proof/", role="admin")).body
    assert (await post(site, "/api/proof/audit")).status == 400
    asked = json.loads((await post(site, "/api/proof/audit", why="monthly", full="true")).body)
    assert (asked["who"], asked["why"], asked["full"], asked["state"]) == (
        "token admin",
        "monthly",
        True,
        "running",
    )
    # A second one is refused while it is under way, whoever asks.
    again = await post(site, "/proof/audit", why="me too")
    assert (again.status, b"an audit is under way: " in again.body) == (409, True)

    async def ended() -> Any:
        site.shared.renew()
        told = json.loads((await get(site, "/api/proof", accept="*/*", role="admin")).body)
        return told["asked"]["state"] == "failed" and told["asked"]["error"]

    async with asyncio.timeout(60):
        while not (reason := await ended()):
            await asyncio.sleep(0.1)
    assert "no_such_agents" in reason
    page = (await get(site, "/proof/", role="admin")).body.decode()
    assert "it could not be done" in page and "no_such_agents" in page
    await site.close()


async def test_an_audit_runs_below_a_host_that_is_no_python_and_says_when_none_can_start(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """uWSGI names itself where the path of Python belongs."""

    async def reason() -> Any:
        await post(site, "/api/proof/audit", why="monthly")
        async with asyncio.timeout(60):
            while True:
                site.shared.renew()
                asked = json.loads((await get(site, "/api/proof", accept="*/*")).body)["asked"]
                if asked["state"] != "running":
                    assert asked["state"] == "failed"
                    return asked["error"]
                await asyncio.sleep(0.05)

    # What lies in the working folder of the host hides nothing.
    (tmp_path / "msgspec.py").write_text("raise SystemExit(9)")
    with monkeypatch.context() as hosted:
        hosted.chdir(tmp_path)
        hosted.setattr(sys, "executable", "/usr/bin/uwsgi-core")
        assert "no broker: set BROKER_URL" in await reason()  # says the audit itself
    monkeypatch.setattr("streams.web.audit_apart.interpreter", lambda: "/nowhere/python")
    assert "no process can be started to audit: No such file" in await reason()


async def test_no_audit_outlives_the_pages_it_was_asked_for_on(site: Site, database: str) -> None:
    def auditing() -> list[psutil.Process]:
        return [
            child
            for child in psutil.Process().children()
            if "streams.web.audit_child" in " ".join(child.cmdline())
        ]

    await post(site, "/api/proof/audit", why="monthly")
    async with asyncio.timeout(30):
        while not auditing():
            await asyncio.sleep(0.005)
    await site.close()
    assert auditing() == []
    # Whoever looks elsewhere is told, and asks for another.
    with connect_sync(database) as connection:
        asked = connection.execute(
            "SELECT what->>'error' FROM outbox_actions WHERE act = 'audit failed'"
        ).fetchall()
    assert asked == [("the process that made it was stopped",)]


MANY = """
INSERT INTO outbox (biz_type, topic, key, payload)
SELECT 'chat_history_persist', 'chat-history', 'many-' || n % 500, '{}'
FROM generate_series(1, 100000) AS n;
INSERT INTO outbox_state (outbox_id, status, "offset", partition, applied, attempts)
SELECT id, 'consumed', id, id % 8, nextval('outbox_applied'), 0 FROM outbox WHERE key LIKE 'many-%';
UPDATE relay_position SET floor = (SELECT max(id) FROM outbox)
"""
READ_WHOLE = """
SELECT coalesce(sum(seq_scan), 0)::bigint FROM pg_stat_user_tables
WHERE relname ~ '^outbox(_state)?_[0-9]+$'
"""


async def test_no_page_reads_a_large_table_whole_or_asks_much(
    database: str, eventually: Eventually
) -> None:
    with connect_sync(database) as connection:
        for (name,) in connection.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits"
        ).fetchall():
            if name.rpartition("_")[0] in ("outbox", "outbox_state"):
                connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(name)))
    engine = sync_engine(database)
    with engine.begin() as narrow:
        partitions.ensure_sync(narrow, ahead=104_000, width=2_600)
    engine.dispose()
    fill(database)
    with connect_sync(database) as connection:
        for statement in MANY.split(";\n"):
            connection.execute(statement.encode())
        connection.execute("ANALYZE")
        [(leaves,)] = connection.execute(
            "SELECT count(*) FROM pg_inherits WHERE inhparent = 'outbox'::regclass"
        ).fetchall()
        assert leaves >= 40

    def whole() -> int:
        """How often a partition was read whole so far."""
        with connect_sync(database) as connection:
            return int(connection.execute(READ_WHOLE.encode()).fetchall()[0][0])

    before = whole()
    site = Site(load(environ={"DATABASE_URL": database}))
    asked = 0

    async def look(address: str) -> Response:
        path, _, query = address.partition("?")
        return await site.answer(
            Request("GET", path, query, headers=[("host", "localhost")], peer="127.0.0.1")
        )

    def count(*_: Any) -> None:
        nonlocal asked
        asked += 1

    event.listen(Engine, "before_cursor_execute", count)
    [cause] = [
        each["fingerprint"]
        for each in json.loads((await look("/api/dead")).body)["causes"]
        if each["error_code"] == "23503"
    ]
    seen: dict[str, tuple[int, int]] = {}
    for page in PAGES:
        if page.path.startswith("/operations/{"):
            continue
        asked = 0
        answer = await look(address_of(page, cause))
        assert answer.status == 200, (page.path, answer.body)
        # Statistics are written down when a session ends.
        site.pool.rest()
        await eventually(lambda: connections(database) == 0)
        before, scans = whole(), before
        seen[page.path] = (asked, before - scans)
    assert max(statements for statements, _ in seen.values()) <= 45, seen
    # A partition of the scene's own rows is small enough to be read as it is; all of them are not.
    looked_back = ("/", "/conversation", "/proof/")
    assert max(scans for path, (_, scans) in seen.items() if path not in looked_back) < 10, seen
    event.remove(Engine, "before_cursor_execute", count)
    await site.close()
