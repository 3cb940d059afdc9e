"""A database that a relay did not publish from is never trusted.

In no mode, until an operator adopts it.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest

from streams.database import migrate
from streams.dev.postgres import PostgresServer
from streams.dev.process import Process
from streams.dev.wheels import postgres_bin
from streams.operate import relay_adopt
from streams.testing.services import UNSAFE
from tests.conftest import Eventually, World
from tests.contract.test_relay_contract import check_order, leads, on_topic, published
from tests.fixtures.command import streams
from tests.fixtures.publish import enqueue, payload

BACK = "ALTER TABLE outbox ALTER COLUMN id RESTART WITH 3"
ELSEWHERE = (
    "UPDATE relay_position SET identity = '7/' || split_part(identity, '/', 2) || '/' ||"
    " split_part(identity, '/', 3)"
)


# What is refused while it runs, at its start and after a sequence went back, is so in both modes.
POLL = pytest.param("poll", marks=pytest.mark.long)
BOTH = pytest.mark.parametrize("relayed", ["cdc", "poll"], indirect=True)
BOTH_AT_LENGTH = pytest.mark.parametrize("relayed", ["cdc", POLL], indirect=True)


@pytest.fixture(params=["cdc", POLL])
async def relayed(
    world: World, request: pytest.FixtureRequest, eventually: Eventually
) -> AsyncIterator[World]:
    """A world whose relay has published 50 rows and saved that."""
    world.environ["STREAMS_RELAY__MODE"] = request.param
    world.migrate()
    relay = world.relay(STREAMS_RELAY__FLOOR_INTERVAL="0.1")
    ids = enqueue(world.url, world.topic, [payload(n, f"c{n % 5}") for n in range(50)])
    await eventually(leads(world, relay))
    await eventually(lambda: world.query("SELECT floor FROM relay_position") == [(ids[-1],)])
    yield world


async def refusal(world: World, relay: Process, eventually: Eventually) -> str:
    """The line with which this relay, the last one started, ends."""
    await eventually(lambda: relay.returncode is not None, 60)
    assert relay.returncode == 2
    log = world.directory / f"streams-{world.processes.index(relay)}.log"
    return log.read_text().splitlines()[-1]


@BOTH
async def test_a_sequence_that_went_back_stops_it_running_and_at_its_start(
    relayed: World, eventually: Eventually
) -> None:
    relayed.query(BACK)
    line = await refusal(relayed, relayed.processes[0], eventually)
    assert "the sequence outbox_id_seq went back to 2, below floor 50" in line
    assert "run `streams relay adopt`" in line
    assert await refusal(relayed, relayed.relay(), eventually) == line


@BOTH_AT_LENGTH
async def test_another_system_identifier_stops_it_running_and_at_its_start(
    relayed: World, eventually: Eventually
) -> None:
    [(before,)] = relayed.query("SELECT system_identifier FROM pg_control_system()")
    relayed.query(ELSEWHERE)
    line = await refusal(relayed, relayed.processes[0], eventually)
    assert f"(system identifier 7 before, {before} now)" in line
    assert "floor 50 is not trusted" in line
    assert await refusal(relayed, relayed.relay(), eventually) == line


async def test_debezium_is_not_looked_after_either(world: World, eventually: Eventually) -> None:
    world.migrate()
    relay = world.relay(STREAMS_RELAY__MODE="debezium")
    await eventually(leads(world, relay))
    world.query(ELSEWHERE)
    assert "system identifier 7 before" in await refusal(world, relay, eventually)


async def test_a_copy_of_the_database_is_refused_and_can_be_adopted(
    relayed: World, postgres: PostgresServer, name: str, eventually: Eventually
) -> None:
    await relayed.processes[0].stop(grace=8)
    copy = f"{name}_copy"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {copy} TEMPLATE {relayed.url.rpartition('/')[2]}")
    original, relayed.environ["DATABASE_URL"] = relayed.url, postgres.url_of(copy)
    relayed.environ["STREAMS_RELAY__MODE"] = "poll"
    try:
        assert "this is not the database that relay" in await refusal(
            relayed, relayed.relay(), eventually
        )
        assert (await streams(relayed, "relay", "status")).code == 1
        asked = await streams(relayed, "relay", "adopt")
        assert (asked.code, "expected --yes, or a terminal to ask" in asked.error) == (2, True)
        done = await streams(
            relayed, "relay", "adopt", "--yes", "--skip", "1000", "--why", "a drill"
        )
        assert (done.code, "goes on at floor 50" in done.out) == (0, True)
        relay = relayed.relay()
        ids = enqueue(relayed.url, relayed.topic, [payload(n, f"c{n % 5}") for n in range(20)])
        assert ids[0] == 1051
        await eventually(published(relayed, ids))
        check_order(relayed, list(range(1, 51)) + ids)
        assert relayed.query("SELECT act, why FROM outbox_actions") == [("relay adopt", "a drill")]
        again = await streams(relayed, "relay", "adopt", "--yes")
        assert (again.code, "nothing to adopt" in again.out) == (0, True)
        await relay.stop(grace=8)
    finally:
        relayed.environ["DATABASE_URL"] = original
        for process in relayed.processes:
            process.kill()
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {copy} WITH (FORCE)")


@pytest.mark.long
async def test_a_dump_restored_on_another_server_is_refused_and_can_be_adopted(
    relayed: World, tmp_path_factory: pytest.TempPathFactory, eventually: Eventually
) -> None:
    """What the dump holds unpublished is published from there.

    What the first server published meanwhile is not of it.
    """
    await relayed.processes[0].stop(grace=8)
    waiting = enqueue(relayed.url, relayed.topic, [payload(n, f"c{n % 5}") for n in range(10)])
    directory = tmp_path_factory.mktemp("second")
    dump = directory / "dump"
    await run(postgres_bin() / "pg_dump", "--format=custom", f"--file={dump}", relayed.url)
    async with PostgresServer(directory / "server", settings=UNSAFE, trusting=True) as second:
        await run(postgres_bin() / "pg_restore", "--exit-on-error", f"--dbname={second.url}", dump)
        original, relayed.environ["DATABASE_URL"] = relayed.url, second.url
        try:
            assert "this is not the database that relay" in await refusal(
                relayed, relayed.relay(), eventually
            )
            done = await streams(relayed, "relay", "adopt", "--yes")
            assert (done.code, "goes on at floor 50" in done.out) == (0, True)
            relayed.migrate()  # a dump holds no replication slot
            relay = relayed.relay()
            ids = enqueue(relayed.url, relayed.topic, [payload(n, f"c{n % 5}") for n in range(20)])
            await eventually(published(relayed, waiting + ids))
            check_order(relayed, list(range(1, 51)) + waiting + ids)
            await relay.stop(grace=8)
        finally:
            relayed.environ["DATABASE_URL"] = original
            for process in relayed.processes:
                process.kill()


async def run(*command: str | Path) -> None:
    """A program of PostgreSQL's, to its end."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()


@BOTH_AT_LENGTH
async def test_after_a_sequence_went_back_nothing_is_taken_for_published(
    relayed: World, eventually: Eventually
) -> None:
    relayed.query("TRUNCATE outbox; " + BACK)
    await refusal(relayed, relayed.processes[0], eventually)
    # Drawn again, below the floor, while no relay ran.
    ids = enqueue(relayed.url, relayed.topic, [payload(n, f"d{n % 5}") for n in range(20)])
    before = len(on_topic(relayed))
    assert (await streams(relayed, "relay", "adopt", "--yes")).code == 0
    relayed.relay()
    ids += enqueue(relayed.url, relayed.topic, [payload(n, f"d{n % 5}") for n in range(20)])
    await eventually(lambda: len(on_topic(relayed)) >= before + len(ids))
    published = [record.id for record in on_topic(relayed) if record.key.startswith(b"d")]
    assert set(published) == set(ids)


async def test_a_relay_that_leads_is_not_adopted_under_its_feet(relayed: World) -> None:
    relayed.query("SELECT setval('outbox_id_seq', 1)")
    answer = await streams(relayed, "relay", "adopt", "--yes")
    # It may have seen it and stopped already.
    assert answer.code == 0 or "leads at this moment: stop it first" in answer.error


async def test_after_a_failover_that_lost_its_tail_ids_are_left_out(
    relayed: World, eventually: Eventually
) -> None:
    """Nothing in the database tells.

    The floor was replicated, ids after it were drawn, published, and are lost.
    """
    await relayed.processes[0].stop(signal.SIGTERM, grace=8)
    refused = await streams(relayed, "relay", "adopt", "--yes")
    assert (refused.code, "nothing to adopt" in refused.out) == (0, True)
    done = await streams(relayed, "relay", "adopt", "--yes", "--force", "--skip", "1000")
    assert (done.code, "the next id is 1051" in done.out) == (0, True)
    [outbox_id] = enqueue(relayed.url, relayed.topic, [payload(50, "c0")])
    assert outbox_id == 1051
    relayed.relay()
    await eventually(published(relayed, [outbox_id]))


def test_ids_that_are_drawn_while_an_operator_is_asked_are_not_drawn_again(world: World) -> None:
    """With few ids left out, the business is soon past them: it does not stop meanwhile."""
    world.migrate()
    first = enqueue(world.url, world.topic, [payload(0, "c")])
    settings = world.settings
    with migrate.connection(settings) as connection:
        adoption = relay_adopt.plan(connection, settings, skip=1, force=True)
        assert adoption is not None
        meanwhile = enqueue(world.url, world.topic, [payload(n, "c") for n in range(1, 6)])
        adopted = relay_adopt.adopt(connection, settings, adoption, who="ann", why=None)
    assert f"the next id is {meanwhile[-1] + 1}" in adopted.change
    later = enqueue(world.url, world.topic, [payload(n, "c") for n in range(6, 9)])
    assert first + meanwhile + later == list(range(first[0], first[0] + 9))


def test_what_waits_stays_before_what_comes_in_a_copy_without_its_sequences(world: World) -> None:
    """Logical replication and dumps of the data alone leave them at their beginning."""
    world.migrate()
    first, second = enqueue(world.url, world.topic, [payload(n, "c") for n in range(2)])
    world.query(
        "INSERT INTO outbox_state (outbox_id, status, topic, key, arrived, next_retry_at)"
        " VALUES (%s, 'retrying', 't', 'c', 500, now())",
        first,
    )
    world.query(
        "INSERT INTO outbox_state (outbox_id, status, applied) VALUES (%s, 'consumed', 900)", second
    )
    world.query(
        "INSERT INTO outbox_foreign (source, outbox_id, status, topic, key, arrived, open, payload)"
        " VALUES ('crm', 1, 'dead', 't', 'c', 700, true, 'x')"
    )
    drawn = ("outbox_arrived", "outbox_applied", "outbox_died")
    world.query("UPDATE outbox_dead_letters SET died = 300")
    world.query(
        "INSERT INTO outbox_actions (id, who, act, what) OVERRIDING SYSTEM VALUE"
        " SELECT n, 'ann', 'x', '{}' FROM generate_series(1, 40) AS n"
    )
    for name in drawn:
        world.query(f"SELECT setval('{name}', 1)")
    settings = world.settings

    def adopt() -> None:
        with migrate.connection(settings) as connection:
            adoption = relay_adopt.plan(connection, settings, skip=1, force=True)
            assert adoption is not None
            relay_adopt.adopt(connection, settings, adoption, who="ann", why=None)

    adopt()
    assert world.query("SELECT id FROM outbox_actions WHERE act = 'relay adopt'") == [(41,)]
    assert [world.query(f"SELECT nextval('{name}')")[0][0] for name in drawn] == [701, 901, 301]
    for name in drawn:
        world.query(f"SELECT setval('{name}', 5000)")
    adopt()  # never back
    assert [world.query(f"SELECT nextval('{name}')")[0][0] for name in drawn] == [5001] * 3
