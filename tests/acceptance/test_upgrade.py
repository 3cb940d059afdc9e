"""Old and new release side by side on one database and one broker, and back again.

The old releases are kept in tests/releases, named for their newest migration, and run in today's
environment.  When a release is made, its code joins them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from streams.database import revisions
from streams.dev.postgres import PostgresServer
from streams.dev.process import Process
from streams.testing.deployment import Deployment
from streams.testing.services import copied
from tests.conftest import Eventually, World
from tests.fixtures.command import streams
from tests.fixtures.releases import Release

# The first that works with a newer schema which only added something.
OLD = "0014"
# What runs of it goes on, and is not started again on a newer schema.
OLDER = "0012"

# What a service does, with the code of its own release.  Conversations are shared with the others.
SERVICE = """\
import os, sys, time
from streams import outbox
from streams.agents.chat_history import ChatHistoryPersist
from streams.database import sync_engine
outbox.start()
engine = sync_engine(os.environ["DATABASE_URL"])
number = 0
while True:
    with engine.begin() as connection:
        events = [
            ChatHistoryPersist(user_id=1, conversation_id=f"c{each % 20}", role="user", message="m")
            for each in range(number, number + 3)
        ]
        outbox.enqueue_sync(connection, events, ordered=True)
    number += 3
    time.sleep(0.02)
"""
HISTORY = "SELECT count(*) FROM chat_histories"


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[str]:
    """The URL of a database with nothing in it, which the old release is the first to migrate."""
    with copied(postgres, postgres.url_of("template1")) as url:
        yield url


@pytest.fixture
def work_goes_on(world: World, eventually: Eventually) -> Callable[[], Any]:
    """`await work_goes_on()`: until a hundred messages more are history."""

    async def wait() -> None:
        [(before,)] = world.query(HISTORY)
        await eventually(lambda: world.query(HISTORY)[0][0] >= before + 100, 60)

    return wait


async def test_the_old_release_goes_on_working_while_the_schema_is_migrated_below_it(
    world: World, eventually: Eventually, tmp_path: Path, work_goes_on: Callable[[], Any]
) -> None:
    old = Release.at(OLD, tmp_path / "old")
    await begin(old, world)
    old.relay(world)
    old.worker(world)
    service = old.start(world, "python", "-c", SERVICE)
    await work_goes_on()
    await upgrade(world)
    died = await poison(world, eventually, "p1")
    await work_goes_on()
    # What it set aside is sent again by today's code.
    await replay(partial(streams, world), world, eventually, died)
    await check(world, eventually, service)


@pytest.mark.long
async def test_old_and_new_release_work_side_by_side_and_the_new_one_is_taken_back(
    world: World, eventually: Eventually, tmp_path: Path, work_goes_on: Callable[[], Any]
) -> None:
    old = Release.at(OLD, tmp_path / "old")
    await begin(old, world)
    old_relay, old_worker = old.relay(world), old.worker(world)
    old_service = old.start(world, "python", "-c", SERVICE)
    by_old = await poison(world, eventually, "p1")

    await upgrade(world)
    await work_goes_on()
    new_relay, new_worker = world.relay(), world.worker()
    new_service = start_service(world)
    await share(world, eventually)
    await work_goes_on()
    await end(old_relay)
    await leads(world, eventually, new_relay)
    await replay(partial(streams, world), world, eventually, by_old)
    # Its own partitions and those of the old one: one of these is worked by the new release.
    died = [await poison(world, eventually, key) for key in ("p2", "p3", "p4")]
    await end(old_worker)
    await work_goes_on()

    # Back again, in the reverse order; the schema stays where it is.
    await end(new_service)
    old_worker = old.worker(world)
    await share(world, eventually)
    await end(new_worker)
    old_relay = old.relay(world)
    await end(new_relay)
    await leads(world, eventually, old_relay)
    await work_goes_on()
    for each in died:
        await replay(partial(old.streams, world), world, eventually, each)
    await check(world, eventually, old_service)
    code, said = await old.streams(world, "audit")
    assert code == 0, said
    assert old_worker.running and old_relay.running


@pytest.mark.long
async def test_what_runs_of_a_release_before_that_goes_on_beside_the_new_one(
    world: World, eventually: Eventually, tmp_path: Path, work_goes_on: Callable[[], Any]
) -> None:
    older = Release.at(OLDER, tmp_path / "older")
    await begin(older, world)
    relay, worker = older.relay(world), older.worker(world)
    service = older.start(world, "python", "-c", SERVICE)
    died = await poison(world, eventually, "p1")
    await upgrade(world)
    await work_goes_on()
    new_relay, new_worker, new_service = world.relay(), world.worker(), start_service(world)
    await share(world, eventually)
    await work_goes_on()
    await end(new_service)
    await end(new_worker)
    await end(new_relay)
    await work_goes_on()
    assert worker.running and relay.running
    # It is not started again: it knows nothing of newer schemas, and says so in a line.
    refused = older.relay(world)
    await eventually(lambda: not refused.running, 60)
    assert (refused.returncode, "at revision" in refused.last_words(1)) == (2, True)
    world.worker()
    await replay(partial(streams, world), world, eventually, died)
    await check(world, eventually, service)


async def begin(release: Release, world: World) -> None:
    """Migrate as this release does; its own code runs, not today's."""
    code, said = await release.streams(world, "migrate")
    assert code == 0, said
    before = world.query(f"SELECT version_num FROM {revisions.VERSION_TABLE}")
    newest = max((release.folder / "db/migrations/versions").glob("[0-9]*.py")).name[:4]
    assert before == [(newest,)]


async def upgrade(world: World) -> None:
    """Migrate as today's code does."""
    answer = await streams(world, "migrate")
    assert answer.code == 0, answer.error
    assert f"\ndatabase at revision {revisions.head()}\n" in f"\n{answer.out}"


def start_service(world: World) -> Process:
    """What a service does, with today's code."""
    return Deployment.start(world, "python", "-c", SERVICE)


async def end(process: Process) -> None:
    """Stop it in order."""
    await process.stop()
    assert process.returncode in (0, -15), process.last_words(5)


async def share(world: World, eventually: Eventually) -> None:
    """Until every worker that answers has partitions, and all are with somebody."""

    def shared() -> bool:
        shares = [each["partitions"].get(world.topic, []) for each in world.health()]
        return len(shares) > 1 and all(shares) and sum(map(len, shares)) == 8

    await eventually(shared, 60)


async def leads(world: World, eventually: Eventually, relay: Process) -> None:
    """Until this relay publishes."""
    await eventually(
        lambda: world.query("SELECT 1 FROM relay_position WHERE pid = %s", relay.pid), 60
    )


async def poison(world: World, eventually: Eventually, key: str) -> int:
    """Enqueue a message that no release can work, and wait until it is dead."""
    payload = json.dumps({"conversation_id": key})
    statement = "SELECT outbox_enqueue('chat_history_persist', %s, %s::json)"
    [(outbox_id,)] = world.query(statement, key, payload)
    dead = "SELECT 1 FROM outbox_state WHERE outbox_id = %s AND status = 'dead'"
    await eventually(lambda: world.query(dead, outbox_id), 60)
    return int(outbox_id)


async def replay(
    run: Callable[..., Any], world: World, eventually: Eventually, outbox_id: int
) -> None:
    """Send a dead message again, with what it lacked, by the command of some release."""
    [(key,)] = world.query("SELECT key FROM outbox WHERE id = %s", outbox_id)
    file = world.directory / "mended.json"
    file.write_text(
        json.dumps({"user_id": 1, "conversation_id": key, "role": "user", "message": "m"})
    )
    code, *said = await run(
        "dead", "replay", str(outbox_id), "--payload", str(file), "--why", "mended"
    )
    assert code == 0, said
    consumed = "SELECT 1 FROM outbox_state WHERE outbox_id = %s AND status = 'consumed'"
    await eventually(lambda: world.query(consumed, outbox_id), 60)


async def check(world: World, eventually: Eventually, service: Process) -> None:
    """All that was committed is history, once and in order; the audit of today finds nothing."""
    assert service.running, service.last_words(5)
    await end(service)
    left = "SELECT count(*) FROM outbox_messages WHERE status <> 'consumed'"
    await eventually(lambda: world.query(left) == [(0,)], 60)
    [(count,)] = world.query("SELECT count(*) FROM outbox_messages")
    assert world.query("SELECT count(*), count(DISTINCT outbox_id) FROM chat_histories") == [
        (count, count)
    ]
    assert (
        world.query(
            "SELECT 1 FROM (SELECT outbox_id < lag(outbox_id) OVER (PARTITION BY chat_id"
            " ORDER BY id) AS wrong FROM chat_histories) AS steps WHERE wrong"
        )
        == []
    )
    answer = await streams(world, "audit")
    assert answer.code == 0, answer.out + answer.error
