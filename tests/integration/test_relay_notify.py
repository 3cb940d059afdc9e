"""A polling relay that PostgreSQL wakes.

It polls at once while it is told, at its interval when it is not.
"""

from __future__ import annotations

import asyncio
import signal

import psycopg
import pytest

from streams.database import migrate
from streams.errors import ServiceUnreachable
from streams.registry import configured
from tests.conftest import Eventually, World
from tests.contract.test_relay_contract import leads, published
from tests.fixtures.publish import CHAT, enqueue, payload

TRIGGER = "SELECT count(*) FROM pg_trigger WHERE tgname = 'outbox_notify'"
POLLER = (
    "FROM pg_stat_activity WHERE application_name = 'outbox-streams relay' AND datname ="
    " current_database()"
)


@pytest.fixture
def woken(world: World) -> World:
    """A world whose relays look by themselves six times an hour only."""
    world.environ |= {"STREAMS_RELAY__MODE": "poll", "STREAMS_RELAY__POLL_INTERVAL": "600"}
    world.environ["STREAMS_RELAY__NOTIFY"] = "true"
    world.migrate()
    return world


async def asleep(world: World, eventually: Eventually) -> None:
    """The relay has looked and waits."""
    await eventually(
        lambda: (
            world.query(f"SELECT wait_event = 'ClientRead' AND state = 'idle' {POLLER}")
            == [(True,)]
        )
    )


async def test_it_looks_when_somebody_has_committed(woken: World, eventually: Eventually) -> None:
    relay = woken.relay()
    await eventually(leads(woken, relay))
    for number in range(5):
        await asleep(woken, eventually)
        ids = enqueue(woken.url, woken.topic, [payload(number, "c")])
        await eventually(published(woken, ids))
    await asleep(woken, eventually)
    await relay.stop(signal.SIGTERM, grace=30)
    assert relay.returncode == 0


async def test_it_is_woken_again_after_its_connection_was_lost(
    woken: World, eventually: Eventually
) -> None:
    relay = woken.relay()
    await eventually(leads(woken, relay))
    await asleep(woken, eventually)
    [(pid,)] = woken.query(f"SELECT pid {POLLER}")
    woken.query("SELECT pg_terminate_backend(%s, 5000)", pid)
    ids = enqueue(woken.url, woken.topic, [payload(1, "c")])
    await eventually(published(woken, ids))
    await eventually(lambda: woken.query(f"SELECT count(*) {POLLER}") == [(1,)])
    await asleep(woken, eventually)
    ids = enqueue(woken.url, woken.topic, [payload(2, "c")])
    await eventually(published(woken, ids))
    assert relay.running


async def test_without_being_told_it_looks_at_its_interval_and_says_why(
    woken: World, eventually: Eventually
) -> None:
    woken.query("DROP TRIGGER outbox_notify ON outbox")
    woken.relay(STREAMS_RELAY__POLL_INTERVAL="1")
    ids = enqueue(woken.url, woken.topic, [payload(1, "c")])
    await eventually(published(woken, ids))
    ids = enqueue(woken.url, woken.topic, [payload(2, "c")])
    await eventually(published(woken, ids))
    assert (
        "has no trigger that notifies: run `streams migrate`"
        in (woken.directory / "streams-0.log").read_text()
    )


def test_migrate_makes_the_trigger_and_removes_it(woken: World) -> None:
    assert woken.query(TRIGGER) == [(1,)]
    assert migrated(woken) == []
    woken.environ["STREAMS_RELAY__NOTIFY"] = "false"
    assert migrated(woken) == ["trigger outbox_notify removed"]
    assert woken.query(TRIGGER) == [(0,)]
    assert migrated(woken) == []


async def test_migrate_waits_for_writers_without_holding_others_up(woken: World) -> None:
    woken.environ["STREAMS_RELAY__NOTIFY"] = "false"
    with (
        psycopg.connect(woken.url) as open_one,
        psycopg.connect(woken.url, autocommit=True) as other,
    ):
        insert = "INSERT INTO outbox (biz_type, topic, key, payload) VALUES (%s, %s, 'c', '{}')"
        open_one.execute(insert, (CHAT, woken.topic))
        other.execute("SET lock_timeout = '5s'")
        migration = asyncio.create_task(asyncio.to_thread(migrated, woken, timeout=1.0))
        while not migration.done():
            await asyncio.to_thread(other.execute, insert, (CHAT, woken.topic))
        line = f"trigger outbox_notify did not .* held by pid {open_one.info.backend_pid} "
        with pytest.raises(ServiceUnreachable, match=line):
            await migration
        open_one.rollback()
    assert migrated(woken) == ["trigger outbox_notify removed"]


def migrated(world: World, timeout: float = 60.0) -> list[str]:
    """What `streams migrate` says beside the revision."""
    settings = world.settings
    return list(migrate.migrate(settings, configured(settings), timeout=timeout))[1:]
