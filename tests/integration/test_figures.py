"""What relay and workers write down of themselves, on real services.

Counts, lag, signs of life, and their ends.
"""

from __future__ import annotations

import pytest
from sqlalchemy import NullPool

from streams.database import connect, sync_engine
from streams.operate.look import look
from streams.operate.snapshot import Limits, Snapshot
from streams.relay.leader.figures import LeaderFigures
from streams.settings import load
from tests.conftest import Eventually, World
from tests.fixtures.publish import enqueue, payload


def snapshot(world: World) -> Snapshot:
    limits = Limits(relay=world.settings.relay.name, topics=(world.topic,))
    with sync_engine(world.url, poolclass=NullPool).connect() as connection:
        return look(connection, limits)


def counted(world: World) -> dict[str, int]:
    [row] = world.query(
        "SELECT coalesce(sum(enqueued), 0), coalesce(sum(relayed), 0), coalesce(sum(consumed), 0),"
        " coalesce(sum(dead), 0), coalesce(sum((SELECT sum(n) FROM unnest(latency) AS n)), 0)"
        " FROM outbox_stats WHERE width = 10"
    )
    return dict(
        zip(("enqueued", "relayed", "consumed", "dead", "latencies"), map(int, row), strict=True)
    )


async def test_processes_tell_what_they_did_and_how_they_ended(
    world: World, eventually: Eventually
) -> None:
    world.environ["STREAMS_RELAY__MODE"] = "poll"
    world.up(workers=2)
    good, bad = 300, 7
    enqueue(world.url, world.topic, [payload(n, f"c{n % 20}") for n in range(good)])
    broken = [payload(n, f"b{n}") | {"user_id": "x"} for n in range(bad)]
    enqueue(world.url, world.topic, broken)
    expected = {
        "enqueued": good + bad,
        "relayed": good + bad,
        "consumed": good,
        "dead": bad,
        "latencies": good,
    }
    await eventually(lambda: counted(world) == expected, 60)
    # Of the last minute, which may be over before all the rest is told.
    assert snapshot(world).latency.samples == good

    def settled() -> Snapshot | None:
        """When the lag is told of every partition, and who has it, of a group that is at rest."""
        seen = snapshot(world)
        owners = {worker.id for worker in seen.workers}
        told = seen.partitions and all(part.lag == 0 for part in seen.partitions)
        return seen if told and {part.owner for part in seen.partitions} == owners else None

    seen = await eventually(settled, 60)
    assert seen.totals.at_rest
    assert seen.totals.dead == bad
    kinds = sorted(process.kind for process in seen.processes)
    assert kinds == ["relay", "worker", "worker"]
    partitions = [number for worker in seen.workers for number in worker.partitions[world.topic]]
    assert sorted(partitions) == list(range(world.settings.topic.partitions))
    assert {part.owner for part in seen.partitions} == {worker.id for worker in seen.workers}
    assert len(seen.partitions) == world.settings.topic.partitions
    assert {limit.topic for limit in seen.retention} == {world.topic}
    assert {"wal_held", "lag", "standbys"} & {name.partition(":")[0] for name in seen.trends}

    relay, *_ = [process for process in world.processes if "streams" in process.log.name]
    first, second = [process for process in world.processes if "faust" in process.log.name]
    second.kill()
    await first.stop(grace=60)
    await relay.stop(grace=60)
    await eventually(
        lambda: (
            world.query(
                "SELECT kind, count(*) FROM outbox_processes WHERE ended IS NOT NULL GROUP BY kind"
                " ORDER BY 1"
            )
            == [("relay", 1), ("worker", 1)]
        ),
        30,
    )
    # What was counted last is there, though nobody was told to wait for it.
    assert counted(world) == expected


async def test_counts_that_are_refused_hold_up_no_sign_of_life(
    world: World, eventually: Eventually
) -> None:
    """A worker that cannot write its counts would look like one that is gone."""
    world.environ["STREAMS_RELAY__MODE"] = "poll"
    world.migrate()
    world.query(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN IF NEW.consumed > 0 THEN RAISE 'a word of theirs' USING ERRCODE = '54000';"
        " END IF; RETURN NEW; END$$;"
        "CREATE TRIGGER no BEFORE INSERT OR UPDATE ON outbox_stats FOR EACH ROW"
        " EXECUTE FUNCTION no()"
    )
    world.up()
    enqueue(world.url, world.topic, [payload(n, f"c{n}") for n in range(20)])
    [log] = [process.log for process in world.processes if "faust" in process.log.name]
    await eventually(lambda: "figures not written" in log.read_text(), 60)
    beats = "SELECT max(heartbeat) FROM outbox_processes WHERE kind = 'worker'"
    for _ in range(2):
        [(last,)] = world.query(beats)
        await eventually(lambda at=last: world.query(beats) > [(at,)], 15)
    assert log.read_text().count("figures not written") == 1
    assert "a word of theirs" not in log.read_text()


async def test_a_step_of_a_leaders_figures_that_fails_holds_up_no_other(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a trigger of somebody's own, nor a count that takes longer than a URL lets it."""
    settings = load(environ={"DATABASE_URL": database})
    async with await connect(database) as connection:
        await connection.execute(
            "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS"
            " $$BEGIN RAISE 'a word of theirs'; END$$;"
            "CREATE TRIGGER no BEFORE INSERT OR UPDATE ON outbox_primary FOR EACH ROW"
            " EXECUTE FUNCTION no();"
            "INSERT INTO outbox_stats (bucket, width, process, projection, biz_type)"
            " VALUES (now() - interval '9 years', 10, 'p', 'main', 'b')"
        )
        leader = LeaderFigures(settings)
        for _ in range(2):
            leader._due.clear()
            await leader.write(connection)
        counts = "SELECT (SELECT count(*) FROM outbox_gauges), (SELECT count(*) FROM outbox_stats)"
        [(gauges, old)] = await (await connection.execute(counts)).fetchall()
    assert gauges > 0
    assert old == 0
    [said] = [record for record in caplog.records if record.message == "figures not written"]
    about = (said.__dict__["step"], said.__dict__["error"])
    assert about == ("see", "PostgreSQL refuses it: RaiseException (SQLSTATE P0001)")
