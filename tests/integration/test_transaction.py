"""Sequences within one run that were worked wrongly once, on the real transaction without Kafka."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from streams.settings import load
from streams.worker.connections import Failed
from streams.worker.fate import HandlerTimeout
from streams.worker.handlers import Care
from streams.worker.isolation import RECENTLY
from streams.worker.jobs import PATIENCE, Persist, guarded
from streams.worker.ledger import Run
from streams.worker.persister import Persister
from streams.worker.transaction import Invisible, Transaction
from tests.fixtures.listed import PARTITIONS, TOPIC
from tests.fixtures.proxy import Proxy
from tests.fixtures.simulation import Bench
from tests.fixtures.stage import Stage


@pytest.fixture
def stage(database: str) -> Iterator[Stage]:
    """One empty outbox, its topic and its workers."""
    with Bench(database) as bench:
        yield Stage(bench)


def deliver(stage: Stage) -> None:
    """Everything of the first partition in one run; then the database has to be as the model says."""
    run = stage.next_run(0, 1000)
    assert run is not None
    stage.persist(0, run)
    stage.compare()


def test_a_message_and_its_resend_in_one_run_have_one_effect(stage: Stage) -> None:
    stage.insert(stage.bench.connection, "a", "plain")
    rows = stage.committed()
    stage.send(rows)
    again = stage.bench.resend(rows[0].root)
    stage.model.resent(rows[0].root, again)
    stage.send(stage.committed())
    deliver(stage)
    assert stage.bench.query("SELECT count(*) FROM notes") == [(1,)]
    assert stage.bench.query("SELECT status FROM outbox_state") == [("consumed",)]


def test_a_message_its_resend_and_a_broken_one_in_one_run_have_one_effect_each(stage: Stage) -> None:
    """With something odd beside them the two took another way, and the message was consumed without an effect."""
    for _ in range(2):
        stage.insert(stage.bench.connection, "a", "plain")
    first, broken = stage.committed()
    stage.send([first])
    stage.model.resent(first.root, stage.bench.resend(first.root))
    stage.send(stage.committed())
    stage.publish(broken, "null")
    deliver(stage)
    assert stage.bench.query("SELECT count(*) FROM notes") == [(2,)]


@pytest.mark.parametrize("damage", ["null", "not json", "broken", "no key"])
def test_a_broken_record_keeps_its_place_in_its_conversation(stage: Stage, damage: str) -> None:
    """What is judged by its outbox row was claimed last, and `applied` told another order than the handler saw."""
    for key in "aab":
        stage.insert(stage.bench.connection, key, "plain")
    for place, row in enumerate(stage.committed()):
        stage.publish(row, damage if place == 0 else "now")
    deliver(stage)
    stage.drain()


def test_a_message_that_cannot_be_read_holds_those_behind_it_in_its_run(stage: Stage) -> None:
    stage.insert(stage.bench.connection, "a", "plain")
    stage.insert(stage.bench.connection, "a", "held", readable=False)
    stage.insert(stage.bench.connection, "a", "plain")
    stage.send(stage.committed())
    deliver(stage)
    states = stage.bench.query("SELECT status, topic FROM outbox_state ORDER BY outbox_id")
    assert states == [("consumed", None), ("dead", "notes"), ("parked", "notes")]


def test_one_that_fails_stays_before_a_later_one_that_cannot_be_read_and_holds(stage: Stage) -> None:
    stage.insert(stage.bench.connection, "a", "plain")
    stage.bench.handler.faults[stage.name()] = "raise"
    stage.insert(stage.bench.connection, "a", "held", readable=False)
    stage.send(stage.committed())
    deliver(stage)
    assert stage.bench.query("SELECT status FROM outbox_state ORDER BY arrived") == [("retrying",), ("dead",)]


def test_a_run_that_is_not_ours_any_more_shares_no_transaction(stage: Stage) -> None:
    """The run before it had been given up: this one's messages were persisted before that one's."""
    stage.insert(stage.bench.connection, "a", "plain")
    stage.send(stage.committed())
    run = stage.next_run(0, 1)
    assert run is not None
    run.current = False
    assert stage.bench.run(stage.bench.workers[0].together([run])) is None
    assert stage.bench.query("SELECT count(*) FROM outbox_state") == [(0,)]


def test_a_frozen_owner_keeps_its_partition_no_longer_than_the_server_lets_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that waits for the rest of a pipeline counts as active: none of its timeouts would free the lock."""
    states: list[Any] = []
    together = Transaction._together

    async def look(transaction: Transaction, *what: Any) -> list[Any]:
        found = await together(transaction, *what)
        states.extend(
            stage.bench.query("SELECT state FROM pg_stat_activity WHERE pid = %s", transaction._driver.info.backend_pid)
        )
        return found

    monkeypatch.setattr(Transaction, "_together", look)
    stage.insert(stage.bench.connection, "a", "plain")
    stage.send(stage.committed())
    deliver(stage)
    assert set(states) == {("idle in transaction",)}


@pytest.mark.parametrize("care", list(Care))
def test_what_another_transaction_decides_in_this_moment_is_seen_in_the_next_try(stage: Stage, care: Care) -> None:
    """Its row is not visible when the run asks whether all are new: the claim waits for it, and is refused."""
    for _ in range(3):
        stage.insert(stage.bench.connection, "a", "plain")
    rows = stage.committed()
    stage.send(rows)
    run = stage.next_run(0, 1000)
    assert run is not None

    async def overtaken() -> Any:
        async with await psycopg.AsyncConnection.connect(stage.bench.settings.database_url) as other:
            await other.execute(
                "INSERT INTO outbox_state (outbox_id, status) VALUES (%s, 'discarded')", (rows[1].root,)
            )
            working = asyncio.create_task(stage.bench.workers[0].persist(run, care))
            deadline = time.monotonic() + 20
            while not stage.bench.query("SELECT FROM pg_stat_activity WHERE wait_event = 'transactionid'"):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            await other.commit()
            return await working

    outcome = stage.bench.run(overtaken())
    assert (outcome.consumed, outcome.skipped) == (2, 1)
    states = [("consumed",), ("discarded",), ("consumed",)]
    assert stage.bench.query("SELECT status FROM outbox_state ORDER BY outbox_id") == states
    assert stage.bench.query("SELECT outbox_id FROM notes ORDER BY id") == [(rows[0].root,), (rows[2].root,)]


def test_what_waits_behind_a_message_that_fails_again_is_not_touched(stage: Stage) -> None:
    """Each attempt took everything behind it and set it aside again: dead rows by the thousand."""
    for _ in range(3):
        stage.insert(stage.bench.connection, "a", "plain")
    stage.bench.handler.faults["n0001"] = "P0001"
    stage.send(stage.committed())
    deliver(stage)
    parked = "SELECT outbox_id, xmin, ctid FROM outbox_state WHERE status = 'parked' ORDER BY 1"
    before = stage.bench.query(parked)
    assert len(before) == 2
    stage.all_due()
    stage.wake_up(["a"], 1000)
    stage.compare()
    assert stage.bench.query(parked) == before
    stage.bench.handler.faults.clear()
    stage.all_due()
    stage.wake_up(["a"], 1000)
    stage.compare()
    assert stage.bench.query("SELECT DISTINCT status FROM outbox_state") == [("consumed",)]


def test_a_network_that_falls_silent_before_the_rollback_is_given_up(stage: Stage) -> None:
    """What could not be rolled back is no outage for ever: the connection is given up, and the message is not charged."""
    stage.insert(stage.bench.connection, "a", "plain")
    stage.send(stage.committed())
    run = stage.next_run(0, 1)
    assert run is not None

    async def silence(_: AsyncConnection) -> None:
        proxy.blackhole()
        proxy.heal()
        raise ValueError("on demand")

    with Proxy(stage.bench.settings.database_url) as proxy:
        short = {"STREAMS_WORKER__HANDLER_TIMEOUT": "1", "STREAMS_WORKER__LOCK_TIMEOUT": "0.5"}
        worker = Persister(load(environ={"DATABASE_URL": proxy.url("postgres"), **short}), stage.bench.registry)
        stage.bench.handler.hook = silence
        # The server learns of it by its own timeout only, and keeps the partition locked until then.
        assert stage.bench.run(asyncio.wait_for(worker.persist(run), 60)) is not None
        stage.bench.run(worker.close())
    assert stage.bench.query("SELECT status, attempts FROM outbox_state") == [("consumed", 0)]


def test_what_is_due_is_judged_by_the_databases_clock(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose clock is an hour behind would wait for an hour; one an hour ahead would call without end."""
    worker = stage.bench.workers[0]
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 3600)
    assert stage.bench.run(worker.reachable())
    assert abs(worker.now() - real()) < 5


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
    monkeypatch.setattr(worker, "reachable", away)
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

    monkeypatch.setattr(worker, "reachable", away)
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

    async def unseen(topic: str, work: Any, care: Care) -> Any:
        if len(pauses) < 1100:
            raise Failed(Invisible("not yet"), False)
        return await once(topic, work, care)

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

    async def unseen(topic: str, work: Any, care: Care) -> Any:
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
