"""The benchmarks measure what the worker does: their statements are its own, and still work."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from xml.etree import ElementTree

import psycopg
import pytest
from aiohttp import web

from benchmarks.crowd import Crowd, addresses, fill
from benchmarks.pages import ask, times, viewing
from benchmarks.persist import Record, statements
from streams.dev.ports import free_port
from streams.settings import load
from streams.web import aiohttp as on_aiohttp
from streams.web.pages import PAGES
from streams.web.site import Site


@pytest.fixture
async def aiohttp_pages(database: str) -> AsyncIterator[str]:
    """The pages of a deployment in which nothing happens."""
    host = web.Application()
    host.add_subapp("/outbox/", on_aiohttp.pages(load(environ={"DATABASE_URL": database})))
    runner = web.AppRunner(host, shutdown_timeout=1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield f"http://127.0.0.1:{port}/outbox"
    await runner.cleanup()


def test_the_contestants_statements_claim_and_persist_a_batch(database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute(
            "INSERT INTO outbox (biz_type, topic, key, payload)"
            " SELECT 'chat_history_persist', 'chat-history', 'c' || n % 7, json_build_object("
            "'user_id', n % 7, 'conversation_id', 'c' || n % 7, 'role', 'user', 'message', 'hi')"
            " FROM generate_series(1, 50) AS n"
        )
        rows = connection.execute(
            "SELECT id, key, payload::text, (extract(epoch FROM created_at) * 1000)::bigint"
            " FROM outbox ORDER BY id"
        ).fetchall()
        records = [
            Record(outbox_id, offset, key, payload.encode(), created)
            for offset, (outbox_id, key, payload, created) in enumerate(rows)
        ]
        for statement, parameters in statements("chat-history", 0, records):
            connection.execute(statement, parameters)
        connection.commit()
        [(histories, consumed)] = connection.execute(
            "SELECT (SELECT count(*) FROM chat_histories),"
            " (SELECT count(*) FROM outbox_state WHERE status = 'consumed')"
        ).fetchall()
    assert (histories, consumed) == (50, 50)


@pytest.mark.long
async def test_every_page_of_a_crowded_deployment_is_timed(database: str) -> None:
    size = Crowd(rows=8000, dead=800, open=100)
    *_, filled = fill(database, size)
    assert filled == 1.0
    settings = load(environ={"DATABASE_URL": database})
    measured = await times(settings, addresses(database, size), 2)
    assert {page.path for page in PAGES} <= measured.keys()
    assert len(measured) == 2 * len(PAGES) + 11
    assert all(0 < each.p50 <= each.most for each in measured.values())
    site = Site(settings)
    dead = json.loads((await ask(site, "/api/dead")).body)
    await site.close()
    assert len(dead["causes"]) == 41
    assert sum(cause["messages"] for cause in dead["causes"]) > 700


async def test_viewers_are_counted_by_what_they_are_sent(
    aiohttp_pages: str,
) -> None:
    renewed = await viewing(aiohttp_pages, ("/dead/", "/proof/"), 2.5)
    # Each once, and nothing that has not changed a second time.
    assert renewed == 2


@pytest.mark.long
def test_the_whole_contest_runs() -> None:
    command = [sys.executable, "-m", "benchmarks", "--rows", "5000", "--rounds", "1"]
    contest = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert contest.returncode == 0, contest.stdout[-3000:] + contest.stderr[-3000:]
    assert "bare" in contest.stdout


@pytest.mark.long
def test_an_old_deployment_is_measured_beside_a_new_one() -> None:
    command = [sys.executable, "-m", "benchmarks.growth", "1000,2,1000,4", "4000,5,2000,8"]
    command += ["--load", "2000", "--seconds", "2"]
    growth = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert growth.returncode == 0, growth.stdout[-3000:] + growth.stderr[-3000:]
    assert "last by first" in growth.stdout
    assert growth.stdout.count("during retention") >= 2


@pytest.mark.long
def test_a_deployment_in_trouble_loses_nothing_and_what_grows_is_told(tmp_path: Path) -> None:
    picture = tmp_path / "soak.svg"
    command = [sys.executable, "-m", "benchmarks.soak", "--seconds", "40", "--rate", "200"]
    command += ["--width", "2000", "--keep", "10", "--every", "15", "--plot", str(picture)]
    soak = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert soak.returncode == 0, soak.stdout[-3000:] + soak.stderr[-3000:]
    assert "the audit finds nothing wrong" in " ".join(soak.stdout.split())
    ElementTree.parse(picture)
