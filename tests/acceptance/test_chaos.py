"""The whole path under fire: processes killed, stopped and moved while messages flow.

Nothing lost, doubled or reordered.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal

import pytest

from streams.dev.process import Process
from tests.conftest import Eventually, World
from tests.fixtures.load import Load, check_effects, offsets, unsettled


@pytest.fixture
def world(world: World) -> World:
    """A migrated world with publication and slot."""
    world.migrate()
    return world


async def committed_to_the_end(world: World, eventually: Eventually) -> None:
    settings = world.settings

    last: list[object] = []

    def equal() -> bool:
        committed, ends = offsets(
            settings.broker_url, settings.worker.group, world.topic, settings.topic.partitions
        )
        last[:] = [committed, ends]
        return bool(ends) and committed == ends

    try:
        await eventually(equal, 30, every=0.5)
    except pytest.fail.Exception:
        pytest.fail("committed {} but log ends {}; workers: {}".format(*last, world.health()))


async def finish(world: World, load: Load, count: int, eventually: Eventually) -> None:
    await eventually(lambda: load.failure or not load.is_alive(), 300)
    assert load.failure is None
    await eventually(lambda: unsettled(world.query) == 0, 180, every=0.3)
    check_effects(world.query, count)
    await committed_to_the_end(world, eventually)


@pytest.mark.parametrize(
    ("count", "kills"),
    [(6_000, 4), pytest.param(200_000, 20, marks=[pytest.mark.long, pytest.mark.timeout(1800)])],
)
async def test_kill_9_of_workers_and_relay_at_random(
    world: World, eventually: Eventually, count: int, kills: int
) -> None:
    chance = random.Random(count)
    running: dict[str, Process] = {
        "relay": world.relay(),
        "worker-1": world.worker(),
        "worker-2": world.worker(),
    }
    load = Load(world.url, world.topic, count)
    load.start()
    await eventually(lambda: world.query("SELECT 1 FROM chat_histories LIMIT 1"), 60)
    for kill in range(kills):
        goal = count * (kill + 1) // (kills + 2)
        await eventually(lambda goal=goal: load.sent >= goal or not load.is_alive(), 120)
        victim = chance.choice(list(running))
        running[victim].kill()
        await asyncio.sleep(chance.uniform(0, 1.5))
        running[victim] = world.relay() if victim == "relay" else world.worker()
    await finish(world, load, count, eventually)


@pytest.mark.long
async def test_a_rebalance_while_runs_are_in_flight(world: World, eventually: Eventually) -> None:
    """The first worker is slow.

    Its transactions end, and its acks arrive, after partitions have moved to the second.
    """
    count = 6000
    world.query(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.7);"
        " RETURN NULL; END $$"
    )
    world.query("CREATE TRIGGER slow AFTER INSERT ON chat_histories EXECUTE FUNCTION slow()")
    world.relay()
    first = world.worker(STREAMS_WORKER__RUN_RECORDS="50")
    load = Load(world.url, world.topic, count)
    load.start()
    await eventually(lambda: world.query("SELECT 1 FROM chat_histories LIMIT 1"), 60)
    second = world.worker(STREAMS_WORKER__RUN_RECORDS="50")
    third = world.worker(STREAMS_WORKER__RUN_RECORDS="50")
    persisted = "SELECT count(*) > %s FROM chat_histories"
    await eventually(lambda: world.query(persisted, count * 5 // 12) == [(True,)], 120)
    await third.stop()
    await eventually(lambda: world.query(persisted, count * 2 // 3) == [(True,)], 120)
    await second.stop()
    world.query("DROP TRIGGER slow ON chat_histories")
    await finish(world, load, count, eventually)
    assert first.running


async def test_a_worker_stopped_for_longer_than_its_session_and_continued(
    world: World, eventually: Eventually
) -> None:
    world.relay()
    zombie, other = world.worker(), world.worker()
    load = Load(world.url, world.topic, 5_000)
    load.start()
    await eventually(
        lambda: world.query("SELECT count(*) > 500 FROM chat_histories") == [(True,)], 60
    )
    assert zombie.pid is not None
    os.killpg(os.getpgid(zombie.pid), signal.SIGSTOP)
    await asyncio.sleep(9)  # longer than the session timeout of 6 s: this wait is the fault itself
    os.killpg(os.getpgid(zombie.pid), signal.SIGCONT)
    await finish(world, load, 5_000, eventually)
    assert other.running


async def test_sigterm_under_load_ends_with_0_before_a_supervisor_loses_patience(
    world: World, eventually: Eventually
) -> None:
    """`streams up` gives ten seconds, Kubernetes thirty.

    Both end within five where the machine has time for them.
    """
    relay, worker = world.relay(), world.worker()
    load = Load(world.url, world.topic, 10_000)
    load.start()
    await eventually(
        lambda: world.query("SELECT count(*) > 1000 FROM chat_histories") == [(True,)], 60
    )
    for process in (worker, relay):
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        assert await process.finish(10) == 0
    world.relay()
    world.worker()
    await finish(world, load, 10_000, eventually)
