"""Sequences within one run that were worked wrongly once, on the real transaction without Kafka."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from streams.database import query
from streams.settings import load
from streams.worker.failure.strategy import Strategy
from streams.worker.run.persister import Persister
from streams.worker.run.transaction import IN_A_RUN, Transaction
from tests.fixtures.listed import TOPIC
from tests.fixtures.proxy import Proxy
from tests.fixtures.simulation import Bench
from tests.fixtures.stage import Stage


@pytest.fixture
def stage(database: str) -> Iterator[Stage]:
    """One empty outbox, its topic and its workers."""
    with Bench(database) as bench:
        yield Stage(bench)


def deliver(stage: Stage) -> None:
    """Everything of the first partition in one run.

    Then the database has to be as the model says.
    """
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


def test_a_message_its_resend_and_a_broken_one_in_one_run_have_one_effect_each(
    stage: Stage,
) -> None:
    """With something odd beside them the two took another way.

    The message was consumed without an effect.
    """
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
    """What is judged by its outbox row was claimed last.

    So `applied` told another order than the handler saw.
    """
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


def test_one_that_fails_stays_before_a_later_one_that_cannot_be_read_and_holds(
    stage: Stage,
) -> None:
    stage.insert(stage.bench.connection, "a", "plain")
    stage.bench.handler.faults[stage.name()] = "raise"
    stage.insert(stage.bench.connection, "a", "held", readable=False)
    stage.send(stage.committed())
    deliver(stage)
    assert stage.bench.query("SELECT status FROM outbox_state ORDER BY arrived") == [
        ("retrying",),
        ("dead",),
    ]


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
    """A server that waits for the rest of a pipeline counts as active.

    None of its timeouts would free the lock.
    """
    states: list[Any] = []
    together = Transaction._together

    async def look(transaction: Transaction, *what: Any) -> list[Any]:
        answers = await together(transaction, *what)
        states.extend(
            stage.bench.query(
                "SELECT state FROM pg_stat_activity WHERE pid = %s",
                transaction._driver.info.backend_pid,
            )
        )
        return answers

    monkeypatch.setattr(Transaction, "_together", look)
    stage.insert(stage.bench.connection, "a", "plain")
    stage.send(stage.committed())
    deliver(stage)
    assert set(states) == {("idle in transaction",)}


@pytest.mark.parametrize("care", list(Strategy))
def test_a_fate_that_another_transaction_decides_in_this_moment_is_seen_in_the_next_try(
    stage: Stage, care: Strategy
) -> None:
    """Its row is not visible when the run asks whether all are new.

    The claim waits for it, and is refused.
    """
    for _ in range(3):
        stage.insert(stage.bench.connection, "a", "plain")
    rows = stage.committed()
    stage.send(rows)
    run = stage.next_run(0, 1000)
    assert run is not None

    async def overtaken() -> Any:
        async with await psycopg.AsyncConnection.connect(
            stage.bench.settings.database_url
        ) as other:
            await other.execute(
                "INSERT INTO outbox_state (outbox_id, status) VALUES (%s, 'discarded')",
                (rows[1].root,),
            )
            working = asyncio.create_task(stage.bench.workers[0].persist(run, care))
            deadline = time.monotonic() + 20
            while not stage.bench.query(
                "SELECT FROM pg_stat_activity WHERE wait_event = 'transactionid'"
            ):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            await other.commit()
            return await working

    outcome = stage.bench.run(overtaken())
    assert (outcome.consumed, outcome.skipped) == (2, 1)
    states = [("consumed",), ("discarded",), ("consumed",)]
    assert stage.bench.query("SELECT status FROM outbox_state ORDER BY outbox_id") == states
    assert stage.bench.query("SELECT outbox_id FROM notes ORDER BY id") == [
        (rows[0].root,),
        (rows[2].root,),
    ]


def test_a_message_behind_one_that_fails_again_is_not_touched(stage: Stage) -> None:
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


@pytest.mark.parametrize("silent_for", [100, 1])
def test_who_vanished_in_the_middle_of_a_pipeline_keeps_no_partition(
    stage: Stage, silent_for: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server has no limit for the rest of a pipeline: whoever waits for the lock ends it.

    Not before the session has been silent for as long as it says that it may.
    """
    stage.insert(stage.bench.connection, "a", "plain")
    stage.send(stage.committed())
    run = stage.next_run(0, 1)
    assert run is not None
    monkeypatch.setattr("streams.worker.database.database.ENDED_AFTER", 0.2)
    with closing(stage.bench.another()) as vanished:
        locking = query("lock_partitions").replace("%(topic)s", "$1").replace("%(session)s", "$2")
        vanished.execute(f"SET idle_in_transaction_session_timeout = '{silent_for}s'".encode())
        vanished.commit()
        parameters = [TOPIC.encode(), IN_A_RUN.encode()]
        vanished.pgconn.enter_pipeline_mode()
        vanished.pgconn.send_query_params(b"BEGIN", None)
        vanished.pgconn.send_query_params(
            locking.replace("%(partitions)s::bigint[]", "'{0}'::bigint[]").encode(), parameters
        )
        vanished.pgconn.send_flush_request()
        vanished.pgconn.flush()
        short = {"STREAMS_WORKER__LOCK_TIMEOUT": "0.2"}
        worker = Persister(
            load(environ={"DATABASE_URL": stage.bench.settings.database_url, **short}),
            stage.bench.registry,
        )
        # Who waits in vain is not waited for; who is let in has as long as a busy machine takes.
        persisting = asyncio.wait_for(worker.persist(run), 30 if silent_for == 1 else 2.5)
        if silent_for == 1:
            assert stage.bench.run(persisting) is not None
            assert "a session that fell silent in a run is ended" in caplog.text
        else:
            with pytest.raises(TimeoutError):
                stage.bench.run(persisting)
        stage.bench.run(worker.database.close())


def test_a_network_that_falls_silent_before_the_rollback_is_given_up(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be rolled back is no outage for ever.

    The connection is given up, and the message is not charged.
    """
    stage.insert(stage.bench.connection, "a", "plain")
    stage.send(stage.committed())
    run = stage.next_run(0, 1)
    assert run is not None

    monkeypatch.setattr("streams.worker.database.connections.GRACE", 1.0)

    async def silence(_: AsyncConnection) -> None:
        proxy.blackhole()
        proxy.heal()
        raise ValueError("on demand")

    with Proxy(stage.bench.settings.database_url) as proxy:
        short = {"STREAMS_WORKER__HANDLER_TIMEOUT": "1", "STREAMS_WORKER__LOCK_TIMEOUT": "0.5"}
        worker = Persister(
            load(environ={"DATABASE_URL": proxy.url("postgres"), **short}), stage.bench.registry
        )
        stage.bench.handler.hook = silence
        # The server learns of it by its own timeout only, and keeps the partition locked until
        # then.
        assert stage.bench.run(asyncio.wait_for(worker.persist(run), 60)) is not None
        stage.bench.run(worker.database.close())
    assert stage.bench.query("SELECT status, attempts FROM outbox_state") == [("consumed", 0)]


def test_a_retry_is_due_by_the_databases_clock(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose clock is an hour behind would wait for an hour.

    One an hour ahead would call without end.
    """
    worker = stage.bench.workers[0]
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 3600)
    assert stage.bench.run(worker.database.reachable())
    assert abs(worker.database.now() - real()) < 5
