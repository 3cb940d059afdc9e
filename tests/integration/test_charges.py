"""Who is charged for a timeout, an outage, a wait or a crash: nobody, unless it was the message."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from streams.settings import RETRY_SUFFIX
from streams.worker.database.connections import TransactionFailed
from streams.worker.driver.runs import Run
from streams.worker.driver.suspicion import ISOLATE
from streams.worker.failure.classify import HandlerTimeout
from streams.worker.failure.history import RECENTLY
from streams.worker.run.crash_guard import PersistRun, WakeConversations, count_crashes
from streams.worker.run.transaction import NotYetVisible, Transaction
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


def recently_failing(stage: Stage) -> None:
    """Messages of the topic failed a moment ago."""
    memory = stage.bench.workers[0].attempts.history(TOPIC)
    memory.failed[TOPIC] = time.monotonic()
    memory.first["plain"].add(guilty=10)
    assert memory.recently_failing(TOPIC)
    assert not memory.recently_failing("another")


def test_a_timeout_while_the_database_is_away_is_not_charged_to_a_message_that_is_alone(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, run = stage.bench.workers[0], a_run(stage)
    recently_failing(stage)

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
    recently_failing(stage)

    async def hang(_: AsyncConnection) -> None:
        raise HandlerTimeout

    stage.bench.handler.hook = hang
    assert consumed(stage, run) == 1
    assert stage.bench.query("SELECT status, attempts FROM outbox_state") == [("consumed", 0)]


def test_messages_that_hang_cost_one_timeout_each_and_three_for_their_run(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was known of one was forgotten when the next one hung.

    Each doubled the number of timeouts.
    """
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
    assert [(one.status, one.code) for one in outcome.set_aside] == [("retrying", "timeout")] * 8
    assert stage.bench.handler.hung <= len(keys) + 3
    assert stage.bench.workers[0].attempts.history(TOPIC).known_failures == {}
    stage.bench.handler.hung = 0
    stage.all_due()
    stage.wake_up(keys, 1000)
    assert stage.bench.query("SELECT DISTINCT status, attempts FROM outbox_state") == [
        ("retrying", 2)
    ]
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
    assert [(one.status, one.code) for one in outcome.set_aside] == [("retrying", "timeout")]
    assert stage.bench.handler.hung == 4
    stage.all_due()
    stage.wake_up(["a"], 1000)
    assert stage.bench.query("SELECT status, attempts FROM outbox_state") == [("retrying", 2)]
    assert stage.bench.handler.hung == 5


def test_an_error_that_no_handler_raised_is_tried_once_more_in_pieces_too(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(stage)
    recently_failing(stage)
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
    recently_failing(stage)
    memory, real = stage.bench.workers[0].attempts.history(TOPIC), time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + RECENTLY)
    assert not memory.recently_failing(TOPIC)


def test_a_row_that_does_not_become_visible_is_waited_for_without_end(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction may be open for hours.

    The growing pause was a number too large after 17 minutes.
    """
    worker, run = stage.bench.workers[0], a_run(stage)
    once, sleep = worker._once, asyncio.sleep
    pauses: list[float] = []

    async def unseen(*how: Any) -> Any:
        if len(pauses) < 1100:
            raise TransactionFailed(NotYetVisible("not yet"), False)
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


def noted(stage: Stage) -> list[tuple[Any, ...]]:
    """How many deaths of each partition."""
    return stage.bench.query(
        "SELECT topic, partition, crashes FROM outbox_partition_crashes WHERE crashes > 0"
    )


def struck(stage: Stage) -> list[tuple[Any, ...]]:
    """How many deaths of each message that was tried alone."""
    return stage.bench.query(
        "SELECT outbox_id, crashes FROM outbox_message_crashes WHERE crashes > 0"
    )


def suspect(stage: Stage, run: Any, worker: Any = None) -> Run:
    """The same records, as the first run after its partition was assigned."""
    suspects = (worker or stage.bench.workers[0]).suspects
    suspects.assigned([(run.topic, run.partition)])
    again = Run(
        run.topic, run.partition, run.records, suspicion=suspects.of(run.topic, run.partition)
    )
    assert again.suspicion is not None
    again.suspicion.delivered(10**6)
    return again


def crashed(stage: Stage, run: Any, crashes: int) -> None:
    """A worker of before died so often with it."""
    stage.bench.query(
        "INSERT INTO outbox_partition_crashes (topic, partition, owner, crashes, through)"
        " VALUES (%s, %s, '-', %s, %s) ON CONFLICT (topic, partition) DO UPDATE"
        " SET crashes = excluded.crashes, through = excluded.through RETURNING 1",
        run.topic,
        run.partition,
        crashes,
        run.end,
    )


async def work(worker: Any, run: Run) -> Any:
    """As a lane does it."""
    async with worker.suspects.busy([run.suspicion]):
        return await count_crashes(worker, PersistRun(worker, run))


def test_a_retry_that_comes_by_its_own_record_and_by_one_that_sends_it_again_keeps_its_attempts(
    stage: Stage,
) -> None:
    """Its own record came first, was taken for new, and began to count from one: tried for ever."""
    stage.insert(stage.bench.connection, "a", "plain")
    stage.bench.handler.faults[stage.name()] = "raise"
    [row] = rows = stage.committed()
    stage.send(rows)
    run = stage.next_run(0, 10)
    assert run is not None
    stage.persist(0, run)
    stage.all_due()
    stage.publish(row)
    stage.bench.query(
        "INSERT INTO outbox (biz_type, topic, key, payload, resend_of)"
        " SELECT biz_type, topic, key, payload, id FROM outbox RETURNING id"
    )
    again = stage.committed()
    stage.model.resent(row.id, again[0].id)
    stage.send(again)
    run = stage.next_run(0, 10)
    assert run is not None
    stage.persist(0, run)
    stage.compare()
    assert stage.bench.query("SELECT status, attempts FROM outbox_state") == [("retrying", 2)]


@pytest.mark.parametrize("how", ["rebalance", "shutdown"])
@pytest.mark.parametrize("crashes", [0, ISOLATE])
def test_a_run_that_waits_when_its_worker_ends_in_good_order_has_taken_nobody_down(
    stage: Stage, how: str, crashes: int
) -> None:
    """A missing column and seven deployments made the first message dead.

    It was for crashes that never were.
    """
    worker, run = stage.bench.workers[0], a_run(stage)
    stage.bench.handler.faults = {stage.name(): "42703"}
    if crashes:
        crashed(stage, run, crashes)
    before = noted(stage)

    async def end() -> None:
        again = suspect(stage, run)
        job = asyncio.create_task(work(worker, again))
        async with asyncio.timeout(20):
            while not any(each.waiting for each in (again, *again.parts)):
                await asyncio.sleep(0.01)
        if how == "shutdown":
            job.cancel()
            with pytest.raises(asyncio.CancelledError):
                await job
        else:
            again.give_up()
            assert await job is None

    for _ in range(4):
        stage.bench.run(end())
        assert (noted(stage), struck(stage)) == (before, [])
    stage.bench.handler.faults = {}
    outcome = stage.bench.run(work(worker, suspect(stage, run)))
    assert outcome is not None
    assert outcome.consumed == 1
    assert (noted(stage), struck(stage)) == ([], [])


def test_a_process_that_is_told_to_end_while_a_slow_message_is_worked_has_not_died_of_it(
    stage: Stage,
) -> None:
    """Six SIGTERMs, and it was dead.

    The note is taken back at once, whether its handler ends in time or not.
    """
    worker, run = stage.bench.workers[0], a_run(stage)

    async def slow(stopped: list[Any], _: AsyncConnection) -> None:
        assert noted(stage) == [(run.topic, 0, 1)]
        await worker.suspects.leave()
        stopped.append(noted(stage))
        await asyncio.sleep(1000)

    async def end() -> None:
        stopped: list[Any] = []
        stage.bench.handler.hook = partial(slow, stopped)
        job = asyncio.create_task(work(worker, suspect(stage, run)))
        async with asyncio.timeout(20):
            while not stopped:
                await asyncio.sleep(0.01)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        assert stopped == [[]]
        worker.suspects.leaving = False

    for _ in range(6):
        stage.bench.run(end())
    outcome = stage.bench.run(work(worker, suspect(stage, run)))
    assert outcome is not None
    assert outcome.consumed == 1


def test_who_is_told_to_end_hands_no_more_messages_to_handlers(stage: Stage) -> None:
    worker, run = stage.bench.workers[0], a_run(stage)

    async def end() -> None:
        await worker.suspects.leave()
        again = suspect(stage, run)
        job = asyncio.create_task(work(worker, again))
        await waiting(again)
        again.give_up()
        assert await job is None

    stage.bench.run(end())
    assert stage.bench.query("SELECT count(*) FROM notes") == [(0,)]


def test_who_waits_for_another_owners_lock_is_not_noted_and_lets_others_go_first(
    stage: Stage,
) -> None:
    """The turn was kept for the whole of the lock's time limit."""
    for key in "ad":
        stage.insert(stage.bench.connection, key, "plain")
    stage.send(stage.committed())
    first, second = stage.next_run(0, 1), stage.next_run(1, 1)
    assert first is not None
    assert second is not None
    worker = stage.bench.workers[0]

    async def both() -> None:
        with stage.bench.another() as other:
            other.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [TOPIC])
            waits, goes = suspect(stage, first), suspect(stage, second)
            one = asyncio.create_task(work(worker, waits))
            await asyncio.sleep(0)
            outcome = await asyncio.wait_for(work(worker, goes), 10)
            assert outcome is not None
            assert outcome.consumed == 1
            assert not one.done()
            assert noted(stage) == []
            other.rollback()
            outcome = await asyncio.wait_for(one, 20)
            assert outcome is not None
            assert outcome.consumed == 1

    stage.bench.run(both())


def test_a_run_that_waits_for_a_row_to_become_visible_has_taken_nobody_down(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, run = stage.bench.workers[0], suspect(stage, a_run(stage))

    async def unseen(*_: Any) -> Any:
        raise TransactionFailed(NotYetVisible("not yet"), False)

    monkeypatch.setattr(worker, "_once", unseen)

    async def end() -> None:
        job = asyncio.create_task(work(worker, run))
        await waiting(run)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job

    stage.bench.run(end())
    assert noted(stage) == []


def test_a_run_that_is_known_calls_nobody_and_is_worked_as_a_whole_and_clears_nobody(
    stage: Stage,
) -> None:
    for _ in range(4):
        stage.insert(stage.bench.connection, "a", "plain")
    stage.send(stage.committed())
    run = stage.next_run(0, 4)
    assert run is not None
    worker = stage.bench.workers[0]
    known = Run(run.topic, run.partition, run.records[:3])
    assert consumed(stage, known) == 3
    crashed(stage, run, ISOLATE)
    again = suspect(stage, known)
    outcome = stage.bench.run(work(worker, again))
    assert outcome is not None
    assert (outcome.consumed, outcome.skipped, again.parts) == (0, 3, [])
    assert again.suspect
    assert noted(stage) == [(run.topic, 0, ISOLATE)]
    whole = Run(run.topic, run.partition, run.records, suspicion=again.suspicion)
    outcome = stage.bench.run(work(worker, whole))
    assert outcome is not None
    assert (outcome.consumed, outcome.skipped) == (1, 3)
    assert [len(each) for each in whole.parts] == [3, 1]
    assert (noted(stage), struck(stage)) == ([], [])


def test_a_message_that_was_tried_alone_three_times_is_dead_without_being_tried(
    stage: Stage,
) -> None:
    """It is known by its id, wherever it comes from.

    Here it is a retry behind another message of its conversation.
    """
    for _ in range(3):
        stage.insert(stage.bench.connection, "a", "plain")
    stage.send(stage.committed())
    run = stage.next_run(0, 3)
    assert run is not None
    worker = stage.bench.workers[0]
    stage.bench.handler.faults = {"n0001": "raise"}
    assert consumed(stage, run) == 0
    stage.all_due()
    stage.bench.handler.faults = {}
    [(second,)] = stage.bench.query(
        "SELECT outbox_id FROM outbox_state WHERE status = 'parked' ORDER BY 1 LIMIT 1"
    )
    stage.bench.query(
        "INSERT INTO outbox_message_crashes (topic, outbox_id, partition, crashes)"
        " VALUES (%s, %s, 0, 3) RETURNING 1",
        TOPIC,
        second,
    )
    call = Run(TOPIC + RETRY_SUFFIX, 0, [run.records[0]])
    crashed(stage, call, ISOLATE)
    again = suspect(stage, call)

    async def wake() -> Any:
        return await count_crashes(worker, WakeConversations(worker, TOPIC, again))

    outcome = stage.bench.run(wake())
    assert outcome is not None
    assert stage.bench.query("SELECT status, error_code FROM outbox_state ORDER BY outbox_id") == [
        ("consumed", "ValueError"),
        ("dead", "crash"),
        ("consumed", None),
    ]
    assert (noted(stage), struck(stage)) == ([], [])


def test_partitions_given_up_alive_are_handed_on_unsuspected_once(stage: Stage) -> None:
    first, second = stage.bench.workers[:2]
    place = (TOPIC, 0)
    run = a_run(stage)

    async def owned(worker: Any, records: Any) -> bool:
        """Whether it was suspect when this worker got it; the worker works it and gives it up."""
        again = suspect(stage, records, worker)
        assert again.suspicion is not None
        again.suspicion.delivered(0)
        await worker.suspects.take(again.suspicion)
        return bool(again.suspect)

    async def life() -> list[bool]:
        seen = [await owned(first, run)]
        again = Run(TOPIC, 0, run.records, suspicion=first.suspects.of(*place))
        again.suspicion._until = again.end  # type: ignore[union-attr]
        await work(first, again)
        assert not again.suspect
        await first.suspects.give_up([place])
        seen.append(await owned(second, run))  # handed on in order
        seen.append(await owned(first, run))  # the second one vanished
        await first.suspects.give_up([place])  # still suspect
        seen.append(await owned(second, run))
        return seen

    assert stage.bench.run(life()) == [True, False, True, True]
