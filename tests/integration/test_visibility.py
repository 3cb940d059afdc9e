"""A record without an outbox row is decided soon, whoever keeps a transaction open.

One in commit is waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psycopg
import pytest
from click.testing import CliRunner

from streams.cli import cli
from streams.database import sync_engine
from streams.operate import look
from streams.operate.faults import faults_of
from streams.worker.failure import doubt
from tests.fixtures.workbench import Workbench

WRITE = (
    "INSERT INTO outbox (biz_type, topic, key, payload)"
    " VALUES ('note_added', 'elsewhere', 'x', '{}')"
)
REJECTED = [("no outbox row has this id",)]


@pytest.fixture
def bench(database: str) -> Iterator[Workbench]:
    with Workbench(database) as bench:
        yield bench


def rowless(bench: Workbench, *notes: str) -> None:
    """Work a record whose row is gone."""
    run = bench.send(*notes)
    bench.query("DELETE FROM outbox WHERE biz_type = 'note_added' AND topic <> 'elsewhere'")
    bench.persist(run, 8)


def reasons(bench: Workbench) -> list[tuple[str]]:
    return bench.query("SELECT reason FROM outbox_rejects")


def test_a_transaction_that_stays_open_does_not_hold_a_partition(bench: Workbench) -> None:
    with psycopg.connect(bench.url) as idle:
        idle.execute(WRITE)
        rowless(bench, "a")
        assert reasons(bench) == REJECTED


def test_a_prepared_transaction_does_not_hold_a_partition(bench: Workbench, name: str) -> None:
    with psycopg.connect(bench.url) as connection:
        connection.tpc_begin(connection.xid(1, name, ""))
        connection.execute(WRITE)
        connection.tpc_prepare()
        try:
            rowless(bench, "a")
            assert reasons(bench) == REJECTED
        finally:
            connection.tpc_rollback()


def test_a_transaction_that_is_busy_for_long_does_not_hold_a_partition(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doubt, "VISIBLE_SECONDS", 1.0)
    with psycopg.connect(bench.url) as busy:
        busy.execute(WRITE)

        async def both() -> None:
            working = asyncio.create_task(asyncio.to_thread(busy.execute, "SELECT pg_sleep(60)"))
            run = bench.send("a")
            bench.query("DELETE FROM outbox WHERE topic <> 'elsewhere'")
            await asyncio.wait_for(bench.worker.persist(run), 8)
            busy.cancel_safe()
            with pytest.raises(psycopg.errors.QueryCanceled):
                await working

        bench.run(both())
        assert reasons(bench) == REJECTED


def test_an_id_that_was_never_drawn_is_decided_at_once(bench: Workbench) -> None:
    run = bench.send("a")
    [record] = run.records
    record.headers[0] = ("id", b"4999999")
    with psycopg.connect(bench.url) as busy:
        busy.execute(WRITE)
        working = bench.run(_busy(bench, busy))
        bench.persist(run, 5)
        busy.cancel_safe()
        bench.run(_ended(working))
    assert reasons(bench) == REJECTED


def test_status_names_who_holds_the_floor_and_since_when(
    bench: Workbench, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", bench.url)
    monkeypatch.setattr(look, "PIN_SECONDS", 0.0)
    engine = sync_engine(bench.url)
    with engine.connect() as connection:
        assert look.look(connection).pins == ()
        with (
            psycopg.connect(bench.url, application_name="shop") as idle,
            psycopg.connect(bench.url) as prepared,
        ):
            prepared.tpc_begin(prepared.xid(1, name, ""))
            prepared.execute(WRITE)
            prepared.tpc_prepare()
            idle.execute(WRITE)
            pid = idle.info.backend_pid
            try:
                faults = faults_of(look.look(connection))
                told = CliRunner().invoke(cli, ["status"])
            finally:
                prepared.tpc_rollback()
    engine.dispose()
    first, second = [fault.line for fault in faults if fault.code == "floor.pinned"]
    assert first.startswith("prepared transaction '1_")
    assert "ROLLBACK PREPARED '1_" in first
    assert second.startswith(
        f"the transaction of pid {pid} (shop, idle in transaction) is open since 20"
    )
    assert told.exit_code == 1
    assert f"the transaction of pid {pid} (shop, idle in transaction)" in told.output


async def _busy(bench: Workbench, connection: psycopg.Connection) -> asyncio.Task[object]:
    """A task in which the server is at work for this connection: it can be cancelled from now."""
    task = asyncio.create_task(asyncio.to_thread(connection.execute, "SELECT pg_sleep(60)"))
    sleeps = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
    async with asyncio.timeout(30):
        while not bench.query(sleeps, connection.info.backend_pid):
            await asyncio.sleep(0.01)
    return task


async def _ended(task: asyncio.Task[object]) -> None:
    with pytest.raises(psycopg.errors.QueryCanceled):
        await task
