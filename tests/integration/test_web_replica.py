"""Pages on a real standby: what they show is as of the moment that it shows, and they say so."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psycopg
import pytest

from streams.dev.postgres import PostgresServer
from streams.dev.wheels import postgres_bin
from streams.operate import faults, look
from streams.settings import load
from streams.testing.services import UNSAFE, migrated
from streams.web import shared
from streams.web.messages import FORM, Request, Response
from streams.web.site import Site
from tests.conftest import Eventually
from tests.fixtures.scene import fill

WORKER = """
INSERT INTO outbox_processes (id, kind, name, host, pid, version, partitions)
VALUES (gen_random_uuid(), 'worker', 'g', 'h', 7, '1', '{"t": [0]}')
"""
SHOWN = "SELECT pg_last_xact_replay_timestamp()"


@dataclass
class Nodes:
    """A primary with a migrated database, its standby, and the URLs of both."""

    primary: PostgresServer
    standby: PostgresServer
    url: str

    @property
    def replica(self) -> str:
        """The same database on the standby."""
        return self.standby.url_of(self.url.rpartition("/")[2])

    def ask(self, url: str, statement: str) -> list[tuple[Any, ...]]:
        """One statement there."""
        with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    async def follow(self, eventually: Eventually) -> None:
        """Let the standby replay what the primary did, and wait until it has."""
        self.ask(self.replica, "SELECT pg_wal_replay_resume()")
        [(newest,)] = self.ask(self.url, "SELECT pg_current_wal_flush_lsn()")
        replayed = f"SELECT pg_last_wal_replay_lsn() >= '{newest}'::pg_lsn"
        await eventually(lambda: self.ask(self.replica, replayed) == [(True,)])


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    """Both running."""
    async with PostgresServer(tmp_path / "one", settings=UNSAFE, trusting=True) as primary:
        url = await asyncio.to_thread(migrated, primary)
        (tmp_path / "two").mkdir()
        copy = [postgres_bin() / "pg_basebackup", "-D", tmp_path / "two" / "data", "-c", "fast"]
        copy += ["-h", "127.0.0.1", "-p", primary.port, "-U", "postgres", "--no-sync", "-R"]
        process = await asyncio.create_subprocess_exec(*map(str, copy))
        assert await process.wait() == 0
        async with PostgresServer(tmp_path / "two", settings=UNSAFE, trusting=True) as standby:
            yield Nodes(primary, standby, url)


@pytest.fixture
async def site(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """The pages of the standby, whose acts go to the primary."""
    monkeypatch.setattr(shared, "WAIT_SECONDS", 20.0)
    monkeypatch.setattr(shared, "FIRST_SECONDS", 20.0)
    environ = {"DATABASE_URL": nodes.url, "STREAMS_WEB__DATABASE_URL": nodes.replica}
    site = Site(load(environ=environ))
    yield site
    await site.close()


async def get(site: Site, address: str, *, renewed: bool = True) -> Response:
    if renewed:
        site.shared.renew()
    headers = [("host", "127.0.0.1"), ("accept", "text/html")]
    return await site.answer(Request("GET", address, "", headers=headers, peer="127.0.0.1"))


async def post(site: Site, path: str, **form: str) -> Response:
    headers = [("host", "127.0.0.1"), ("sec-fetch-site", "same-origin"), ("content-type", FORM)]
    body = urlencode(form).encode()
    return await site.answer(Request("POST", path, headers=headers, body=body, peer="127.0.0.1"))


async def test_whoever_acts_is_led_to_what_came_of_it_although_a_replica_shows_it_later(
    nodes: Nodes, site: Site, eventually: Eventually
) -> None:
    fill(nodes.url)
    await nodes.follow(eventually)
    for statement in (
        "ALTER SYSTEM SET recovery_min_apply_delay = '1s'",
        "SELECT pg_reload_conf()",
    ):
        nodes.ask(nodes.replica, statement)
    [(message, cause)] = nodes.ask(
        nodes.url, "SELECT outbox_id, fingerprint FROM outbox_dead_letters ORDER BY 1 LIMIT 1"
    )
    assert b"Replay it" in (await get(site, f"/messages/{message}")).body
    assert (await post(site, f"/messages/{message}/replay", why="mended")).status == 303
    page = (await get(site, f"/messages/{message}", renewed=False)).body
    assert b"replaying" in page and b"Replay it" not in page

    # An operation is there at once, and can be worked, however far behind the replica is.
    nodes.ask(nodes.replica, "SELECT pg_wal_replay_pause()")
    began = time.monotonic()
    preview = await post(site, "/operations/replay", error=cause, why="mended")
    assert preview.headers["Location"] == "../operations/1" and time.monotonic() - began < 10
    shown = await get(site, "/operations/1", renewed=False)
    assert (shown.status, b"Nothing is done yet" in shown.body) == (200, True)
    assert "X-Figures-Old" not in shown.headers
    assert (await post(site, "/operations/1/submit")).status == 303
    assert b"Stop it" in (await get(site, "/operations/1", renewed=False)).body
    assert b"operations/1" in (await get(site, "/operations/")).body


async def test_operations_are_shown_where_nobody_may_act(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    nodes.ask(
        nodes.url,
        "INSERT INTO outbox_operations (act, who, through, hash, planned)"
        " VALUES ('replay', 'amy', 1, 'x', 1)",
    )
    nodes.ask(nodes.url, "CREATE ROLE nobody LOGIN")
    await nodes.follow(eventually)
    acts = nodes.url.replace("postgres@", "nobody@")
    environ = {"DATABASE_URL": nodes.url, "STREAMS_WEB__DATABASE_URL": nodes.replica}
    site = Site(load(environ={**environ, "STREAMS_WEB__ACTS_URL": acts}))
    assert (await get(site, "/operations/1")).status == 200
    assert (await get(site, "/operations/2")).status == 404
    await site.close()


async def test_a_replica_that_is_behind_says_so_and_counts_ages_from_what_it_shows(
    nodes: Nodes, site: Site, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes.ask(nodes.url, WORKER)
    await nodes.follow(eventually)

    # One that has replayed all there is shows this moment, although nobody has written of late.
    fresh = await get(site, "/workers/")
    assert "X-Figures-Old" not in fresh.headers and b"h:7" in fresh.body

    beat = "UPDATE outbox_processes SET heartbeat = now()"
    nodes.ask(nodes.url, beat)
    await nodes.follow(eventually)
    nodes.ask(nodes.replica, "SELECT pg_wal_replay_pause()")
    nodes.ask(nodes.url, beat)
    monkeypatch.setattr(look, "ALIVE_SECONDS", 2.0)
    monkeypatch.setattr(look, "GONE_SECONDS", 3.0)
    monkeypatch.setattr(faults, "BEHIND_SECONDS", 2.0)
    await eventually(lambda: nodes.ask(nodes.replica, f"SELECT now() - ({SHOWN}) > '4 s'")[0][0])
    [(shown,)] = nodes.ask(nodes.replica, SHOWN)
    for address in ("/", "/workers/", "/api/overview", "/dead/"):
        answer = await get(site, address)
        at = datetime.fromisoformat(answer.headers["X-Figures-At"])
        assert at <= shown + timedelta(milliseconds=1), address
        assert "behind its primary" in answer.headers["X-Figures-Old"], address
        if not address.startswith("/api"):
            assert b"grey stale" in answer.body and b"behind its primary" in answer.body, address
    overview = json.loads((await get(site, "/api/overview")).body)
    codes = {fault["code"] for fault in overview["faults"]}
    assert "replica.behind" in codes and not codes & {"workers.none", "worker.silent"}
    assert overview["snapshot"]["behind"] > 4

    await nodes.follow(eventually)
    assert "X-Figures-Old" not in (await get(site, "/")).headers

    # One that follows nobody shows what it has replayed, however long ago.
    await nodes.primary.stop()
    gone = "SELECT count(*) FROM pg_stat_wal_receiver"
    await eventually(lambda: nodes.ask(nodes.replica, gone) == [(0,)])
    await eventually(lambda: nodes.ask(nodes.replica, f"SELECT now() - ({SHOWN}) > '3 s'")[0][0])
    assert "behind its primary" in (await get(site, "/")).headers["X-Figures-Old"]
