"""What every relay mode keeps, on real PostgreSQL and Kafka.

What is committed is on the topic, in order, and nothing else.
"""

from __future__ import annotations

import asyncio
import re
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import psutil
import psycopg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from streams.dev.connect import ConnectWorker
from streams.dev.kafka import KafkaBroker
from streams.dev.postgres import PostgresServer
from streams.dev.process import Process
from streams.relay.debezium.rest import Connect
from tests.conftest import Eventually, World
from tests.fixtures.publish import CHAT, enqueue, payload
from tests.fixtures.records import Reader, Record, first_seen, records

Crash = Callable[[Process], Awaitable[None]]
BATCH = [payload(n, f"c{n % 9}") for n in range(100)]


# What only relays of ours promise: a row that no record can carry stops Debezium's connector, and
# Java has its own memory.
SHARDS = pytest.param("poll in shards", marks=pytest.mark.long)
OURS = pytest.mark.parametrize("mode", ["cdc", "poll", SHARDS], indirect=True)


# How Debezium does in `make test`: test_relay_debezium.py, test_relay_modes.py.
DEBEZIUM = pytest.param("debezium", marks=pytest.mark.long)

# Where polling does nothing that a relay of the other mode does not do too: one connection is lost
# and made anew, one producer waits, one lock is taken over.
POLL = pytest.param("poll", marks=pytest.mark.long)
SAME = pytest.mark.parametrize("mode", ["cdc", POLL, SHARDS, DEBEZIUM], indirect=True)
OURS_SAME = pytest.mark.parametrize("mode", ["cdc", POLL, SHARDS], indirect=True)


@pytest.fixture(params=["cdc", "poll", SHARDS, DEBEZIUM])
def mode(request: pytest.FixtureRequest) -> str:
    """How rows are published; what it needs runs."""
    if request.param == "debezium":
        request.getfixturevalue("connect")
    return str(request.param)


@pytest.fixture
async def world(world: World, mode: str, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """A migrated world whose relays run in one mode."""
    world.environ["STREAMS_RELAY__MODE"], _, shards = mode.partition(" in ")
    if shards:
        world.environ["STREAMS_RELAY__SHARDS"] = "4"
    world.migrate()
    if mode != "debezium":
        yield world
        return
    worker: ConnectWorker = request.getfixturevalue("connect")
    world.environ |= {"STREAMS_CONNECT__URL": worker.url, "STREAMS_CONNECT__REGISTER": "true"}
    yield world
    for process in world.processes:
        process.kill()
    await Connect(worker.url, world.settings.relay.name).delete()


@pytest.fixture
def crash(world: World, request: pytest.FixtureRequest) -> Callable[[Process], Awaitable[None]]:
    """`await crash(relay)`: kill -9 to whoever publishes."""

    async def kill(relay: Process) -> None:
        relay.kill()
        if world.settings.relay.mode == "debezium":
            worker: ConnectWorker = request.getfixturevalue("connect")
            worker.kill()
            await worker.restart()

    return kill


def on_topic(world: World) -> list[Record]:
    return records(world.settings.broker_url, world.topic)


def published(world: World, ids: list[int]) -> Callable[[], bool]:
    """Whether each of these ids is on the topic."""
    reader, wanted = Reader(world.settings.broker_url, world.topic), set(ids)
    return lambda: wanted <= reader.ids()


def confirmed(world: World) -> Callable[[], bool]:
    """Whether the relay has saved that everything written up to now is with the broker."""
    if world.settings.relay.mode == "poll":
        [(newest,)] = world.query("SELECT last_value FROM outbox_id_seq")
        return lambda: world.query("SELECT floor >= %s FROM relay_position", newest) == [(True,)]
    [(now,)] = world.query("SELECT pg_current_wal_insert_lsn()::text")
    statement = (
        "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots WHERE slot_name = %s"
    )
    return lambda: world.query(statement, now, world.settings.relay.name) == [(True,)]


def leads(world: World, process: Process) -> Callable[[], bool]:
    """Whether this process leads, and does what it is there for."""
    statement = "SELECT pid FROM relay_position WHERE pid = %s AND doing <> 'waiting'"
    return lambda: world.query(statement, process.pid) != []


class Writers:
    """Eight writers of shared conversations.

    Every key's rows are serialized, one transaction in five is rolled back,
    and one in fifty takes its time."""

    def __init__(self, url: str, topic: str, transactions: int) -> None:
        self._url, self._topic, self._transactions = url, topic, transactions
        self._threads = [
            threading.Thread(target=self._write, args=(n,), daemon=True) for n in range(8)
        ]
        self._locks = [threading.Lock() for _ in range(20)]
        self.committed: list[int] = []
        self.failures: list[BaseException] = []
        for thread in self._threads:
            thread.start()

    def join(self) -> list[int]:
        for thread in self._threads:
            thread.join(120)
        assert not self.failures, self.failures
        return self.committed

    def _write(self, number: int) -> None:
        try:
            with psycopg.connect(self._url) as connection:
                for turn in range(self._transactions):
                    key = (number * 7 + turn) % len(self._locks)
                    with self._locks[key]:
                        self._transaction(connection, f"c{key}", turn)
        except BaseException as error:
            self.failures.append(error)

    def _transaction(self, connection: psycopg.Connection[Any], key: str, turn: int) -> None:
        rows = connection.execute(
            "INSERT INTO outbox (biz_type, topic, key, payload) SELECT %s, %s, %s, '{}'"
            " FROM generate_series(1, %s) RETURNING id",
            (CHAT, self._topic, key, 1 + turn % 4),
        ).fetchall()
        if turn % 50 == 7:
            time.sleep(0.7)
        if turn % 5 == 4:
            connection.rollback()
        else:
            connection.commit()
            self.committed += [row[0] for row in rows]


def check_order(world: World, ids: list[int]) -> None:
    """Every committed row, no other, and the rows of each key in the order of ids.

    That is the order of the commits.
    """
    records = on_topic(world)
    assert {record.id for record in records} == set(ids)
    for key, seen in first_seen(records).items():
        assert seen == sorted(seen), key


async def test_a_record_is_what_debezium_would_have_sent(
    world: World, eventually: Eventually
) -> None:
    text = '{"user_id":1,  "conversation_id": "c1","role":"user","message":"\\u00e9 \U0001f40d"}'
    plain, traced = (
        world.query(
            "INSERT INTO outbox (biz_type, topic, key, payload, traceparent, resend_of, created_at)"
            " VALUES (%s, %s, 'k\u00e9', %s, %s, %s, '2026-01-31 12:00:00.5') RETURNING id",
            *(CHAT, world.topic, text, *extra),
        )[0][0]
        for extra in ((None, None), ("00-ab-cd-01", 1))
    )
    world.relay()
    # The first connector of a Connect worker that has just started.
    await eventually(published(world, [plain, traced]), 90)
    first, second = sorted(on_topic(world), key=lambda record: record.id)
    assert (first.key, first.value, first.timestamp) == (
        "k\u00e9".encode(),
        text.encode(),
        1769860800500,
    )
    assert first.headers == [
        ("id", str(plain).encode()),
        ("biz_type", CHAT.encode()),
        ("traceparent", None),
        ("resend_of", None),
    ]
    assert second.headers[2:] == [("traceparent", b"00-ab-cd-01"), ("resend_of", b"1")]


async def test_records_are_compressed_keyed_by_murmur2_and_readable_by_aiokafka(
    world: World, eventually: Eventually
) -> None:
    from aiokafka.partitioner import murmur2

    ids = enqueue(world.url, world.topic, [payload(n, f"c{n}") for n in range(200)])
    world.relay()
    await eventually(published(world, ids))
    async with AIOKafkaConsumer(
        bootstrap_servers=world.settings.broker_url, auto_offset_reset="earliest"
    ) as consumer:
        partitions = [
            TopicPartition(world.topic, number) for number in range(world.settings.topic.partitions)
        ]
        consumer.assign(partitions)
        seen: list[Any] = []
        while len(seen) < len(ids):
            for batch in (await consumer.getmany(timeout_ms=5000)).values():
                seen += batch
    assert {int(dict(record.headers)["id"]) for record in seen} == set(ids)
    for record in seen:
        assert record.partition == (murmur2(record.key) & 0x7FFFFFFF) % len(partitions)


@pytest.mark.parametrize("transactions", [100, pytest.param(2000, marks=pytest.mark.long)])
async def test_eight_writers_and_kill_9_lose_double_and_reorder_nothing(
    world: World, crash: Crash, eventually: Eventually, transactions: int
) -> None:
    writers = Writers(world.url, world.topic, transactions)
    # Killing Debezium takes seconds each time.
    for _ in range(1 if world.settings.relay.mode == "debezium" else 3):
        relay = world.relay()
        await eventually(leads(world, relay), 60)
        await asyncio.sleep(0.3)
        await crash(relay)
    world.relay()
    ids = await asyncio.to_thread(writers.join)
    await eventually(published(world, ids), 120, every=0.5)
    check_order(world, ids)


@pytest.mark.parametrize(
    "sizes", [(1, 3, 3000), pytest.param((100_000,), marks=pytest.mark.long)], ids=["small", "huge"]
)
async def test_a_transaction_of_any_size_comes_whole(
    world: World, eventually: Eventually, sizes: tuple[int, ...]
) -> None:
    insert = (
        "INSERT INTO outbox (biz_type, topic, key, payload)"
        " SELECT %s, %s, 'c' || n %% 20, json_build_object('n', n) FROM generate_series(1, %s) AS n"
        " RETURNING id"
    )
    world.relay()
    ids = enqueue(world.url, world.topic, [payload(0, "before")])
    for rows in sizes:
        with psycopg.connect(world.url) as connection:
            connection.execute(insert, (CHAT, world.topic, rows))
            connection.rollback()
        ids += [row[0] for row in world.query(insert, CHAT, world.topic, rows)]
        ids += enqueue(world.url, world.topic, [payload(0, "after")])
        await eventually(published(world, ids), 120)
        await eventually(confirmed(world))
    check_order(world, ids)


async def test_rows_of_an_open_transaction_come_when_it_commits(
    world: World, eventually: Eventually
) -> None:
    world.relay()
    with psycopg.connect(world.url) as connection:
        insert = (
            "INSERT INTO outbox (biz_type, topic, key, payload) VALUES (%s, %s, 'c', '{}')"
            " RETURNING id"
        )
        [early] = connection.execute(insert, (CHAT, world.topic)).fetchone() or []
        late = enqueue(world.url, world.topic, [payload(1, "d")])
        await eventually(published(world, late))
        assert early not in {record.id for record in on_topic(world)}
    await eventually(published(world, [early]))


@SAME
@pytest.mark.long  # in `make test`: tests/acceptance/test_outages.py, with workers
@pytest.mark.parametrize("seconds", [2, 15])
async def test_a_broker_outage_is_waited_out(
    world: World, kafka: KafkaBroker, eventually: Eventually, seconds: int
) -> None:
    relay = world.relay()
    ids = enqueue(world.url, world.topic, [payload(n, f"c{n % 9}") for n in range(100)])
    await eventually(published(world, ids))
    kafka.kill()
    try:
        backlog = world.query(
            "INSERT INTO outbox (biz_type, topic, key, payload) SELECT %s, %s, 'c' || n %% 9,"
            " json_build_object('user_id', 1, 'conversation_id', 'c' || n %% 9, 'role', 'user',"
            " 'message', 'm ' || n) FROM generate_series(1, 30000) AS n RETURNING id",
            *(CHAT, world.topic),
        )
        ids += [row[0] for row in backlog]
        await asyncio.sleep(seconds)
        assert relay.running
        assert relay.pid and psutil.Process(relay.pid).memory_info().rss < 150 << 20
    finally:
        await kafka.restart()
    await eventually(published(world, ids), 240, every=0.5)
    check_order(world, ids)
    assert relay.running


@SAME
async def test_a_database_restart_is_waited_out(
    world: World, postgres: PostgresServer, eventually: Eventually
) -> None:
    relay = world.relay()
    ids = enqueue(world.url, world.topic, [payload(n, f"c{n % 9}") for n in range(100)])
    await eventually(published(world, ids))
    await postgres.restart()
    ids += enqueue(world.url, world.topic, [payload(n, f"c{n % 9}") for n in range(100)])
    await eventually(published(world, ids))
    postgres.kill()
    await postgres.restart()
    ids += enqueue(world.url, world.topic, [payload(n, f"c{n % 9}") for n in range(100)])
    await eventually(published(world, ids))
    check_order(world, ids)
    assert relay.running


@OURS_SAME
async def test_a_standby_takes_over_within_seconds(world: World, eventually: Eventually) -> None:
    leader = world.relay()
    await eventually(leads(world, leader))
    standby = world.relay()
    ids = enqueue(world.url, world.topic, [payload(n, "c") for n in range(100)])
    await eventually(published(world, ids))
    log = world.directory / "streams-1.log"
    # With shards it may be given some at once.
    await eventually(lambda: re.search("relay (stands by|has shards)", log.read_text()))
    leader.kill()
    await eventually(leads(world, standby), 20)
    ids += enqueue(world.url, world.topic, [payload(n, "c") for n in range(100)])
    await eventually(published(world, ids))
    check_order(world, ids)


@OURS
@pytest.mark.parametrize("rows", [30_000, pytest.param(400_000, marks=pytest.mark.long)])
async def test_a_huge_transaction_takes_no_memory(
    world: World, eventually: Eventually, rows: int
) -> None:
    relay = world.relay()
    await eventually(leads(world, relay))
    assert relay.pid
    process = psutil.Process(relay.pid)
    world.query(
        "INSERT INTO outbox (biz_type, topic, key, payload)"
        " SELECT %s, %s, 'c' || n %% 500, json_build_object('n', n, 'message', repeat(md5(n::text),"
        " 10)) FROM generate_series(1, %s) AS n",
        *(CHAT, world.topic, rows),
    )
    done, peak = confirmed(world), 0

    def finished() -> bool:
        nonlocal peak
        peak = max(peak, process.memory_info().rss)
        return done()

    await eventually(finished, 120)
    assert peak < 150 << 20
    records = on_topic(world)
    assert len({record.id for record in records}) == rows
    for key, seen in first_seen(records).items():
        assert seen == sorted(seen), key


@OURS_SAME
async def test_a_row_that_no_record_can_carry_is_dead_and_the_rest_goes_on(
    world: World, eventually: Eventually
) -> None:
    insert = (
        "INSERT INTO outbox (biz_type, topic, key, payload, created_at)"
        " VALUES (%s, %s, 'c', %s, %s) RETURNING id"
    )
    secret, now, topic = '{"x": "secret-canary"}', "2026-01-01", world.topic
    huge = '{"x": "secret-canary' + "x" * 2_000_000 + '"}'
    lines = [
        ((topic, secret, now), None),
        ((topic, huge, now), "takes at most"),
        ((topic, secret, now), None),
        (("no such/topic", secret, now), "not a valid name"),
        (("not-there", secret, now), "does not exist"),
        (("not-there", secret, now), "does not exist"),
        ((topic, secret, "infinity"), "created_at"),
        ((topic, secret, now), None),
    ]
    ids = [world.query(insert, CHAT, *values)[0][0] for values, _ in lines]
    world.relay()
    good = [outbox_id for outbox_id, (_, reason) in zip(ids, lines, strict=True) if reason is None]
    await eventually(published(world, good))
    check_order(world, good)
    dead = {
        row[0]: row[1:]
        for row in world.query(
            "SELECT outbox_id, status, error_code, attempts, error FROM outbox_state"
        )
    }
    assert dead.keys() == set(ids) - set(good)
    for outbox_id, (_, reason) in zip(ids, lines, strict=True):
        if reason is not None:
            assert dead[outbox_id][:3] == ("dead", "unpublishable", 0)
            assert reason in dead[outbox_id][3]
    assert "canary" not in str(dead) + (world.directory / "streams-0.log").read_text()


@OURS
async def test_a_record_that_the_broker_refuses_costs_one_message(
    world: World, eventually: Eventually
) -> None:
    relay = world.relay()
    ids = enqueue(world.url, world.topic, [payload(0, "c")])
    await eventually(published(world, ids))
    # Unknown to the relay, which asked for the limit when it began.
    alter_topic(world, "max.message.bytes", "20000")
    messages = [payload(n, f"c{n % 3}") for n in range(60)]
    messages[30]["message"] = "".join(chr(97 + n * n % 26) + str(n) for n in range(20_000))
    more = enqueue(world.url, world.topic, messages)
    good = ids + more[:30] + more[31:]
    await eventually(published(world, good), 60)
    check_order(world, good)
    assert world.query("SELECT outbox_id, status, error_code FROM outbox_state") == [
        (more[30], "dead", "unpublishable")
    ]
    assert relay.running


@OURS
async def test_a_record_refused_for_what_only_the_broker_knows_costs_one_message(
    world: World, eventually: Eventually
) -> None:
    relay = world.relay()
    ids = enqueue(world.url, world.topic, [payload(0, "c")])
    await eventually(published(world, ids))
    alter_topic(world, "message.timestamp.before.max.ms", "3600000")
    before = enqueue(world.url, world.topic, BATCH)
    [(old,)] = world.query(
        "INSERT INTO outbox (biz_type, topic, key, payload, created_at)"
        " VALUES (%s, %s, 'c3', '{}', '2001-01-01') RETURNING id",
        *(CHAT, world.topic),
    )
    good = ids + before + enqueue(world.url, world.topic, BATCH)
    await eventually(published(world, good), 60)
    check_order(world, good)
    assert world.query("SELECT outbox_id, status, error_code FROM outbox_state") == [
        (old, "dead", "unpublishable")
    ]
    assert relay.running


@OURS_SAME
async def test_sigterm_ends_it_with_everything_confirmed(
    world: World, eventually: Eventually
) -> None:
    ids = [outbox_id for _ in range(100) for outbox_id in enqueue(world.url, world.topic, BATCH)]
    relay = world.relay()
    await eventually(published(world, ids[:1]))
    await relay.stop(signal.SIGTERM, grace=30)
    assert relay.returncode == 0
    world.relay()
    await eventually(published(world, ids))
    check_order(world, ids)
    # Nothing was sent twice: the first relay had confirmed what it sent.
    assert len(on_topic(world)) == len(ids)


@OURS
async def test_a_stopped_relay_leaves_nothing_unconfirmed(
    world: World, eventually: Eventually
) -> None:
    relay = world.relay()
    ids = enqueue(world.url, world.topic, [payload(n, "c") for n in range(50)])
    done = confirmed(world)
    await eventually(published(world, ids))
    await relay.stop(signal.SIGINT, grace=30)
    assert relay.returncode == 0
    # The server may take in a moment later what it was told: nobody else tells it.
    await eventually(done)


def alter_topic(world: World, name: str, value: str, topic: str | None = None) -> None:
    """Set one configuration entry of a topic, by default the world's, behind the relay's back."""
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic or world.topic, incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": world.settings.broker_url})
    [future] = admin.incremental_alter_configs([resource]).values()
    future.result(10)
