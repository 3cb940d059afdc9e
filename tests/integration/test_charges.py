"""Who is charged for a timeout, an outage, a wait or a crash: nobody, unless it was the message."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from streams.worker.connections import Failed
from streams.worker.fate import HandlerTimeout
from streams.worker.isolation import RECENTLY
from streams.worker.jobs import PATIENCE, Persist, guarded
from streams.worker.ledger import Run
from streams.worker.transaction import Invisible, Transaction
from tests.fixtures.listed import PARTITIONS, TOPIC
from tests.fixtures.simulation import Bench
from tests.fixtures.stage import Stage


@pytest.fixture
def stage(database: str) -> Iterator[Stage]:
    """One empty outbox, its topic and its workers."""
    with Bench(database) as bench:
        yield Stage(bench)


def a_run(stage: Stage) -> Any:
    """One message, alone in its run."""
    stage.insert(stage.bench.connection, "a", "plain")
    stage.send(stage.committed())
    run = stage.next_run(0, 1)
    assert run is not None
    return run


def consumed(stage: Stage, run: Any) -> int:
    """How many messages the first worker consumes of it."""
    outcome = stage.bench.run(stage.bench.workers[0].persist(run))
    assert outcome is not None
    return outcome.consumed


def wary(stage: Stage) -> None:
    """Messages of the topic failed a moment ago."""
    memory = stage.bench.workers[0]._memories[""]
    memory.failed[TOPIC] = time.monotonic()
    memory.first["plain"].add(guilty=10)
    assert memory.wary(TOPIC)
    assert not memory.wary("another")


def test_a_timeout_while_the_database_is_away_is_not_charged_to_a_message_that_is_alone(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, run = stage.bench.workers[0], a_run(stage)
    wary(stage)

    async def hang(_: AsyncConnection) -> None:
        raise HandlerTimeout

    async def away() -> bool:
        return False

    stage.bench.handler.hook = hang
    monkeypatch.setattr(worker.database, "reachable", away)
    assert consumed(stage, run) == 1
    assert stage.bench.query("SELECT status, attempts FROM outbox_state") == [("consumed", 0)]


def test_a_timeout_that_does_not_come_back_is_not_charged(stage: Stage) -> None:
    run = a_run(stage)
    wary(stage)

    async def hang(_: AsyncConnection) -> None:
        raise HandlerTimeout

    stage.bench.handler.hook = hang
    assert consumed(stage, run) == 1
    assert stage.bench.query("SELECT status, attempts FROM outbox_state") == [("consumed", 0)]


def test_messages_that_hang_cost_one_timeout_each_and_three_for_their_run(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was known of one was forgotten when the next one hung: each doubled the number of timeouts."""
    keys = [f"k{number}" for number in range(8)]
    for key in keys:
        monkeypatch.setitem(PARTITIONS, key, 0)
        stage.insert(stage.bench.connection, key, "plain")
        stage.bench.handler.faults[stage.name()] = "hang"
    stage.send(stage.committed())
    run = stage.next_run(0, 1000)
    assert run is not None
    outcome = stage.bench.run(stage.bench.workers[0].persist(run))
    assert outcome is not None
    assert [(one.status, one.code) for one in outcome.asides] == [("retrying", "timeout")] * 8
    assert stage.bench.handler.hung <= len(keys) + 3
    assert stage.bench.workers[0]._memories[""].condemned == {}
    stage.bench.handler.hung = 0
    stage.all_due()
    stage.wake_up(keys, 1000)
    assert stage.bench.query("SELECT DISTINCT status, attempts FROM outbox_state") == [("retrying", 2)]
    assert stage.bench.handler.hung <= len(keys)


async def hang_and_lose_the_connection(stage: Stage, db: AsyncConnection) -> None:
    """The rollback fails too, and says that the connection is gone, not why."""
    pid = (await db.exec_driver_sql("SELECT pg_backend_pid()")).scalar_one()
    stage.bench.query("SELECT pg_terminate_backend(%s)", pid)
    stage.bench.handler.hook = partial(hang_and_lose_the_connection, stage)
    stage.bench.handler.hung += 1
    raise HandlerTimeout


def test_a_retry_that_hangs_while_the_database_is_away_is_not_charged(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, run = stage.bench.workers[0], a_run(stage)
    stage.bench.handler.faults = {stage.name(): "raise"}
    stage.bench.run(worker.persist(run))
    stage.bench.handler.faults = {}
    assert stage.bench.query("SELECT status, attempts FROM outbox_state") == [("retrying", 1)]

    async def away() -> bool:
        stage.bench.handler.hook = None
        return False

    monkeypatch.setattr(worker.database, "reachable", away)
    stage.bench.handler.hook = partial(hang_and_lose_the_connection, stage)
    stage.all_due()
    stage.wake_up(["a"], 1000)
    assert stage.bench.query("SELECT status, attempts FROM outbox_state") == [("consumed", 1)]


def test_a_message_that_hangs_and_costs_its_connection_each_time_is_charged(stage: Stage) -> None:
    """As long as the failed rollback was what counted, it was an outage each time, without end."""
    run = a_run(stage)
    stage.bench.handler.hook = partial(hang_and_lose_the_connection, stage)
    outcome = stage.bench.run(asyncio.wait_for(stage.bench.workers[0].persist(run), 60))
    assert outcome is not None
    assert [(one.status, one.code) for one in outcome.asides] == [("retrying", "timeout")]
    assert stage.bench.handler.hung == 4
    stage.all_due()
    stage.wake_up(["a"], 1000)
    assert stage.bench.query("SELECT status, attempts FROM outbox_state") == [("retrying", 2)]
    assert stage.bench.handler.hung == 5


def test_what_no_handler_raised_is_tried_once_more_in_pieces_too(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(stage)
    wary(stage)
    settle, errors = Transaction.settle, [ValueError("once")]

    async def fail(transaction: Transaction) -> None:
        await settle(transaction)
        if errors:
            raise errors.pop()

    monkeypatch.setattr(Transaction, "settle", fail)
    assert consumed(stage, run) == 1


def test_a_topic_is_worked_with_care_for_a_minute_after_a_failure(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    wary(stage)
    memory, real = stage.bench.workers[0]._memories[""], time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + RECENTLY)
    assert not memory.wary(TOPIC)


def test_a_row_that_does_not_become_visible_is_waited_for_without_end(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction may be open for hours; the growing pause was a number too large after 17 minutes."""
    worker, run = stage.bench.workers[0], a_run(stage)
    once, sleep = worker._once, asyncio.sleep
    pauses: list[float] = []

    async def unseen(*how: Any) -> Any:
        if len(pauses) < 1100:
            raise Failed(Invisible("not yet"), False)
        return await once(*how)

    async def shorter(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(worker, "_once", unseen)
    monkeypatch.setattr(asyncio, "sleep", shorter)
    assert consumed(stage, run) == 1
    assert 1 < max(pauses) < 2


async def waiting(run: Any) -> None:
    """Until the run waits for something that is no message's fault."""
    async with asyncio.timeout(20):
        while not run.waiting:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("how", ["rebalance", "shutdown"])
def test_a_run_that_waits_when_its_worker_ends_in_good_order_has_taken_nobody_down(stage: Stage, how: str) -> None:
    """A missing column and seven deployments made the first message dead, for crashes that never were."""
    worker, run = stage.bench.workers[0], a_run(stage)
    stage.bench.handler.faults = {stage.name(): "42703"}

    async def end() -> None:
        again = Run(run.topic, run.partition, run.records, suspect=True)
        job = asyncio.create_task(guarded(worker, Persist(worker, again)))
        await waiting(again)
        if how == "shutdown":
            job.cancel()
            with pytest.raises(asyncio.CancelledError):
                await job
        else:
            again.give_up()
            assert await job is None

    for _ in range(2 * PATIENCE + 2):
        stage.bench.run(end())
        assert stage.bench.query("SELECT crashes FROM outbox_run_crashes") == [(0,)]
    stage.bench.handler.faults = {}
    run.suspect = True
    outcome = stage.bench.run(guarded(worker, Persist(worker, run)))
    assert outcome is not None
    assert outcome.consumed == 1
    assert stage.bench.query("SELECT count(*) FROM outbox_run_crashes") == [(0,)]


def test_a_run_that_is_worked_piece_by_piece_is_given_up_in_the_middle_of_one(stage: Stage) -> None:
    """It waited for its handler to be mended, long after its partition was another worker's."""
    worker, run = stage.bench.workers[0], a_run(stage)
    stage.bench.handler.faults = {stage.name(): "42703"}
    run.suspect = True
    where = (run.topic, run.partition, run.first)
    stage.bench.query(
        "INSERT INTO outbox_run_crashes (topic, partition, first_offset, crashes) VALUES (%s, %s, %s, 3) RETURNING 1",
        *where,
    )

    async def end() -> Any:
        job = asyncio.create_task(guarded(worker, Persist(worker, run)))
        async with asyncio.timeout(20):
            while not run.parts:
                await asyncio.sleep(0.01)
        await waiting(run.parts[0])
        run.give_up()
        async with asyncio.timeout(20):
            return await job

    assert stage.bench.run(end()) is None
    assert stage.bench.query("SELECT crashes_alone FROM outbox_run_crashes") == [(0,)]


def test_a_run_that_waits_for_a_row_to_become_visible_has_taken_nobody_down(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, run = stage.bench.workers[0], a_run(stage)
    run.suspect = True

    async def unseen(*_: Any) -> Any:
        raise Failed(Invisible("not yet"), False)

    monkeypatch.setattr(worker, "_once", unseen)

    async def end() -> None:
        job = asyncio.create_task(guarded(worker, Persist(worker, run)))
        await waiting(run)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job

    stage.bench.run(end())
    assert stage.bench.query("SELECT crashes FROM outbox_run_crashes") == [(0,)]


def test_a_piece_that_was_worked_is_no_suspect_any_more(stage: Stage) -> None:
    """The last one waited for a grant, and each start in good order counted the first one again."""
    for _ in range(2):
        stage.insert(stage.bench.connection, "a", "plain")
    stage.bench.handler.faults = {stage.name(): "42501"}
    stage.send(stage.committed())
    run = stage.next_run(0, 2)
    assert run is not None
    run.suspect = True
    stage.bench.query(
        "INSERT INTO outbox_run_crashes (topic, partition, first_offset, crashes) VALUES (%s, 0, 0, 3) RETURNING 1",
        TOPIC,
    )
    worker = stage.bench.workers[0]

    async def end() -> None:
        job = asyncio.create_task(guarded(worker, Persist(worker, run)))
        async with asyncio.timeout(20):
            while len(run.parts) < 2 or not run.parts[1].waiting:
                await asyncio.sleep(0.01)
        run.give_up()
        assert await job is None

    stage.bench.run(end())
    crashes = stage.bench.query("SELECT first_offset, crashes_alone FROM outbox_run_crashes ORDER BY 1")
    assert crashes == [(0, 0), (1, 0)]
