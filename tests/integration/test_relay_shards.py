"""Relays that share the work of polling: one leader for each shard.

Whoever comes and goes, nothing is lost or out of order.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from functools import partial

import pytest

from streams.broker import beat, kafka
from streams.cli.progress import relays
from streams.database import migrate
from streams.dev.process import Process
from streams.errors import UsageError
from streams.operate.relay_status import standing
from streams.registry import configured
from streams.relay import Relay
from streams.relay.leader.housekeeping import Housekeeping
from streams.relay.leader.lock import Leadership
from streams.relay.leader.session import LeaderSession
from streams.relay.leader.shard_lease import ShardLease
from streams.relay.leader.shared_session import SharedLeaderSession
from streams.relay.leader.sweep import Sweep
from tests.conftest import Eventually, World
from tests.contract.test_relay_contract import Writers, check_order, leads, on_topic, published
from tests.fixtures.aged import narrow
from tests.fixtures.publish import CHAT, enqueue, payload

BATCH = [payload(n, f"c{n % 40}") for n in range(200)]


@pytest.fixture
def world(world: World) -> World:
    """A migrated world whose relays share four shards."""
    world.environ |= {"STREAMS_RELAY__MODE": "poll", "STREAMS_RELAY__SHARDS": "4"}
    world.environ["STREAMS_RELAY__FLOOR_INTERVAL"] = "0.1"
    world.migrate()
    return world


def led(world: World, *relays: Process, shards: int = 4) -> Callable[[], bool]:
    """Whether these relays, and nobody else, lead all shards, none of them more than its part."""
    most = -(-shards // len(relays))

    def condition() -> bool:
        rows = world.query(
            "SELECT pid FROM relay_shards WHERE heartbeat > now() - interval '1 second'"
        )
        pids = [pid for (pid,) in rows]
        return (
            set(pids) == {each.pid for each in relays}
            and len(pids) == shards
            and pids.count(pids[0]) <= most
        )

    return condition


def floor(world: World) -> int:
    return int(world.query("SELECT coalesce(max(floor), 0) FROM relay_position")[0][0])


def newest(world: World) -> int:
    return int(world.query("SELECT last_value FROM outbox_id_seq")[0][0])


def log(world: World, number: int) -> str:
    return (world.directory / f"streams-{number}.log").read_text()


@pytest.mark.parametrize("transactions", [250, pytest.param(2000, marks=pytest.mark.long)])
async def test_relays_come_and_go_and_nothing_is_lost_or_out_of_order(
    world: World, eventually: Eventually, transactions: int
) -> None:
    first = world.relay()
    await eventually(led(world, first))
    writers = Writers(world.url, world.topic, transactions)
    second = world.relay()
    await eventually(led(world, first, second), 60)
    first.kill()
    await eventually(led(world, second), 60)
    third = world.relay()
    await eventually(led(world, second, third), 60)
    second.kill()
    await eventually(led(world, third), 60)
    ids = await asyncio.to_thread(writers.join)
    await eventually(published(world, ids), 60, every=0.5)
    check_order(world, ids)
    await eventually(lambda: floor(world) == newest(world))


@pytest.mark.parametrize("shards", [1, 4])
async def test_what_needs_no_kafka_goes_on_while_kafka_is_away(
    world: World,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    shards: int,
) -> None:
    """Sweep and housekeeping begin once, and no new try to publish ends what they are doing."""
    told: list[str] = []

    async def work(self: Housekeeping | Sweep) -> None:
        told.append(f"{type(self).__name__} begins")
        try:
            await asyncio.Future()
        finally:
            told.append("ends")

    for each in (Housekeeping, Sweep):
        monkeypatch.setattr(each, "run", work)
    monkeypatch.setattr(kafka, "TIMEOUT", 0.1)
    # A thread that asks for the beats would hold up the end of the test for ten seconds.
    monkeypatch.setattr(beat, "read", partial(beat.read, patience=0.1))
    world.environ |= {"BROKER_URL": "127.0.0.1:1", "STREAMS_RELAY__SHARDS": str(shards)}
    settings, registry, stop = world.settings, configured(world.settings), asyncio.Event()
    leadership: Leadership
    session: LeaderSession
    if shards > 1:
        leadership = lease = ShardLease(settings, "poll")
        session = SharedLeaderSession(settings, registry, lease, stop)
    else:
        leadership = Leadership(settings, "poll")
        session = LeaderSession(settings, registry, "poll", leadership, stop)
    async with leadership:
        assert await leadership.take()
        running = asyncio.create_task(session.run())
        await eventually(lambda: caplog.text.count("relay interrupted") >= 3)
        stop.set()
        begun = list(told)
        await running
    assert sorted(begun) == ["Housekeeping begins", "Sweep begins"]


async def test_the_floor_is_that_of_the_slowest_shard(world: World, eventually: Eventually) -> None:
    first, second = world.relay(), world.relay()
    await eventually(led(world, first, second), 60)
    ids = enqueue(world.url, world.topic, BATCH)
    await eventually(lambda: floor(world) == ids[-1])
    second.kill()
    late = enqueue(world.url, world.topic, BATCH)
    await eventually(lambda: floor(world) == late[-1], 60)
    assert world.query("SELECT count(*), min(floor) = max(floor) FROM relay_shards") == [(4, True)]
    await eventually(published(world, ids + late))


async def test_status_tells_who_leads_which_shards(world: World, eventually: Eventually) -> None:
    first, second = world.relay(), world.relay()
    await eventually(led(world, first, second), 60)
    third = world.relay(STREAMS_RELAY__SHARDS="2")
    await eventually(lambda: "relay stands by" in log(world, 2))
    # Its heartbeat comes from the leader of the first shard only.
    await eventually(
        lambda: world.query("SELECT count(*) FROM relay_position WHERE pid IS NOT NULL") == [(1,)]
    )
    with migrate.connection(world.settings) as connection:
        [relay_status] = standing(connection, world.settings.relay.name)
        shown = relays([relay_status], [])
    assert {each.pid for each in relay_status.sharing} == {first.pid, second.pid}
    assert sorted(shard for each in relay_status.sharing for shard in each.shards) == [0, 1, 2, 3]
    assert relay_status.leader is not None
    assert (relay_status.leader.pid, relay_status.sharing[0].shards[0]) == (
        relay_status.sharing[0].pid,
        0,
    )
    assert [each.pid for each in relay_status.standbys] == [third.pid]
    assert {(each["pid"], each["leader"]) for each in shown} == {
        (first.pid, True),
        (second.pid, True),
        (third.pid, False),
    }


async def test_shards_begin_where_the_relay_is(world: World, eventually: Eventually) -> None:
    first = world.relay()
    ids = enqueue(world.url, world.topic, BATCH)
    await eventually(lambda: floor(world) == ids[-1])
    await first.stop(signal.SIGTERM, grace=8)
    # As `streams relay adopt` may do.
    world.query("UPDATE relay_position SET floor = %s", ids[99])
    world.relay()
    await eventually(lambda: floor(world) == ids[-1])
    assert sorted(record.id for record in on_topic(world)) == sorted(ids + ids[100:])


async def test_an_orderly_end_sends_nothing_twice(world: World, eventually: Eventually) -> None:
    first, second = world.relay(), world.relay()
    await eventually(led(world, first, second), 60)
    ids = enqueue(world.url, world.topic, BATCH)
    await eventually(lambda: floor(world) == ids[-1])
    for relay in (first, second):
        await relay.stop(signal.SIGTERM, grace=30)
        assert relay.returncode == 0
    third = world.relay()
    ids += enqueue(world.url, world.topic, BATCH)
    await eventually(led(world, third), 60)
    await eventually(lambda: floor(world) == ids[-1])
    assert sorted(record.id for record in on_topic(world)) == ids


async def test_the_leader_of_the_first_shard_does_retention_for_all_of_them(
    world: World, eventually: Eventually
) -> None:
    narrow(world.url)
    world.environ["STREAMS_OUTBOX__RETENTION_DAYS"] = "14"
    ids = enqueue(world.url, world.topic, BATCH[:25])
    world.query("UPDATE outbox SET created_at = created_at - interval '20 days'")
    world.query("INSERT INTO outbox_state (outbox_id, status) SELECT id, 'consumed' FROM outbox")
    # Published before: the first pass is the one that empties.
    world.query(
        "INSERT INTO relay_position (name, mode, floor) VALUES (%s, 'poll', %s)",
        world.settings.relay.name,
        ids[-1],
    )
    first, second = world.relay(), world.relay()
    await eventually(
        lambda: (
            world.query("SELECT first_id, kept FROM outbox_retired ORDER BY 1") == [(0, 0), (10, 0)]
        ),
        60,
    )
    await eventually(led(world, first, second), 60)
    [said] = world.query("SELECT retention -> 'waits' FROM relay_position")
    assert said == ([],)


@pytest.mark.long
async def test_another_number_of_shards_waits_until_the_old_ones_are_gone(
    world: World, eventually: Eventually
) -> None:
    first = world.relay()
    await eventually(led(world, first))
    second = world.relay(STREAMS_RELAY__SHARDS="3")
    await eventually(lambda: "run with 4 shards, here relay.shards is 3" in log(world, 1))
    ids = enqueue(world.url, world.topic, BATCH)
    await eventually(published(world, ids))
    # Of its own last second: a heartbeat may be late.
    await eventually(led(world, first))
    first.kill()
    ids += enqueue(world.url, world.topic, BATCH)
    await eventually(led(world, second, shards=3), 60)
    await eventually(published(world, ids))
    check_order(world, ids)
    await eventually(lambda: floor(world) == ids[-1])


@pytest.mark.long
async def test_a_relay_that_leads_alone_and_relays_that_share_never_lead_together(
    world: World, eventually: Eventually
) -> None:
    first = world.relay()
    await eventually(led(world, first))
    alone = world.relay(STREAMS_RELAY__SHARDS="1")
    await eventually(lambda: "relay stands by" in log(world, 1))
    ids = enqueue(world.url, world.topic, BATCH)
    await eventually(published(world, ids))
    first.kill()
    await eventually(leads(world, alone), 60)
    third = world.relay()
    await eventually(lambda: "relay stands by" in log(world, 2))
    ids += enqueue(world.url, world.topic, BATCH)
    await eventually(published(world, ids))
    await alone.stop(signal.SIGTERM, grace=8)
    await eventually(led(world, third), 60)
    ids += enqueue(world.url, world.topic, BATCH)
    await eventually(published(world, ids))
    check_order(world, ids)
    # The floor of the relay that led alone is where the shards began.
    assert len(on_topic(world)) < 2 * len(ids)


@pytest.mark.long
async def test_a_backlog_of_many_passes_is_shared(world: World, eventually: Eventually) -> None:
    rows = 60_000
    world.query(
        "INSERT INTO outbox (biz_type, topic, key, payload) SELECT %s, %s, 'c' || n %% 500, '{}'"
        " FROM generate_series(1, %s) AS n",
        *(CHAT, world.topic, rows),
    )
    world.relay()
    world.relay()
    await eventually(lambda: floor(world) == rows, 60)
    check_order(world, list(range(1, rows + 1)))


async def test_only_polling_can_be_shared(world: World) -> None:
    for mode in ("cdc", "auto", "debezium"):
        with pytest.raises(UsageError, match="only polling can be shared"):
            await Relay(world.settings, configured(world.settings), mode).run()


def test_conversations_are_spread_over_the_shards(world: World) -> None:
    counts = world.query(
        "SELECT outbox_shard('c' || n, 4), count(*) FROM generate_series(1, 4000) AS n GROUP BY 1"
    )
    assert {shard for shard, _ in counts} == {0, 1, 2, 3}
    assert all(800 < count < 1200 for _, count in counts)
