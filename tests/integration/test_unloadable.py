"""A message that a worker cannot load from what is stored of it costs that message, no worker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy.ext.asyncio import AsyncConnection

from streams import Batch
from streams.cli import cli
from streams.settings import RETRY_SUFFIX
from streams.worker.driver.runs import Run
from streams.worker.driver.suspicion import ISOLATE, STRIKES
from streams.worker.run.crash_guard import Job, PersistRun, WakeConversations, count_crashes
from streams.worker.run.foreign import Foreign
from streams.worker.run.origin import Outbox
from streams.worker.run.transaction import Transaction
from tests.fixtures.listed import Record
from tests.fixtures.workbench import TOPIC, Note, Workbench, save

NO_TIME = ["infinity", "-infinity", "10000-01-01", "0044-03-15 BC"]


@pytest.fixture(params=[False, True], ids=["outbox", "envelopes"])
def bench(database: str, request: pytest.FixtureRequest) -> Iterator[Workbench]:
    with Workbench(database, envelopes=request.param) as workbench:
        yield workbench


@pytest.fixture
def ours(database: str) -> Iterator[Workbench]:
    with Workbench(database) as workbench:
        yield workbench


def table(bench: Workbench) -> str:
    return "outbox_foreign" if bench.envelopes else "outbox_state"


def fates(bench: Workbench) -> list[tuple[Any, ...]]:
    return bench.query(f"SELECT status, error_code FROM {table(bench)} ORDER BY outbox_id")


def fail(bench: Workbench, *notes: str) -> None:
    """Let the handler fail for these notes."""

    async def handle(messages: Batch[Note], db: AsyncConnection) -> None:
        for message in messages:
            if message.payload.note in notes:
                raise ValueError
        await save(messages, db)

    bench.handler = handle if notes else save


def replayed(bench: Workbench, monkeypatch: pytest.MonkeyPatch, outbox_id: int) -> Run:
    """An operator replays it: the record that a relay makes of the new row."""
    monkeypatch.setenv("DATABASE_URL", bench.url)
    done = CliRunner().invoke(cli, ["dead", "replay", str(outbox_id)], catch_exceptions=False)
    assert done.output == "replayed 1 message\n"
    [(row, key, payload, ms)] = bench.query(
        "SELECT id, key, payload::text, (extract(epoch FROM created_at) * 1000)::bigint"
        " FROM outbox WHERE resend_of = %s ORDER BY id DESC LIMIT 1",
        outbox_id,
    )
    headers = [
        ("id", b"%d" % row), ("biz_type", b"note_added"), ("traceparent", None),
        ("resend_of", b"%d" % outbox_id),
    ]  # fmt: skip
    return Run(TOPIC, 0, [Record(0, row, key.encode(), payload.encode(), headers, ms)])


def test_a_replayed_row_whose_time_no_message_can_have_is_dead_again(
    ours: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay had marked it dead; each worker that read the replay ended, without end."""
    for number, moment in enumerate(NO_TIME, 1):
        ours.send(f"n{number}")
        ours.query("UPDATE outbox SET created_at = %s WHERE id = %s", moment, number)
        ours.query(
            "INSERT INTO outbox_state (outbox_id, status, error_code)"
            " SELECT max(id), 'dead', 'unpublishable' FROM outbox WHERE resend_of IS NULL"
        )
    roots = [row for (row,) in ours.query("SELECT id FROM outbox ORDER BY id")]
    for root in roots:
        ours.persist(replayed(ours, monkeypatch, root))
    assert fates(ours) == [("dead", "created_at")] * len(NO_TIME)
    ours.query("UPDATE outbox SET created_at = '1960-01-01' WHERE id = %s", roots[0])
    ours.persist(replayed(ours, monkeypatch, roots[0]))
    assert fates(ours)[0][0] == "consumed"


def test_an_open_message_whose_time_no_message_can_have_is_dead_and_lets_its_conversation_go(
    bench: Workbench,
) -> None:
    for number, moment in enumerate(NO_TIME):
        fail(bench, f"a{number}")
        bench.persist(bench.send(f"a{number}", f"b{number}", book=f"x{number}"))
        where = "outbox_foreign" if bench.envelopes else "outbox"
        which = "outbox_id" if bench.envelopes else "id"
        bench.query(
            f"UPDATE {where} SET created_at = %s WHERE {which} ="
            f" (SELECT max(outbox_id) FROM {table(bench)} WHERE status = 'retrying')",
            moment,
        )
    fail(bench)
    bench.wake(*[f"x{number}" for number in range(len(NO_TIME))])
    assert fates(bench) == [("dead", "created_at"), ("consumed", None)] * len(NO_TIME)


def test_an_open_message_whose_row_was_deleted_is_dead_and_lets_its_conversation_go(
    ours: Workbench,
) -> None:
    fail(ours, "a")
    ours.persist(ours.send("a", "b", book="x"))
    assert [status for status, _ in fates(ours)] == ["retrying", "parked"]
    ours.query("DELETE FROM outbox WHERE payload->>'note' = 'a'")
    fail(ours)
    ours.wake("x")
    assert fates(ours) == [("dead", "row"), ("consumed", None)]
    assert ours.saved() == ["b"]


def test_whatever_else_is_wrong_with_what_is_stored_costs_its_message(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = Foreign if bench.envelopes else Outbox
    load: Any = origin.load_stored

    def broken(self: Any, delivery: Any, row: Any, attempts: int) -> None:
        load(self, delivery, row, attempts)
        if delivery.message.payload.note == "a":
            raise KeyError("a secret")

    fail(bench, "a", "c")
    bench.persist(bench.send("a", "b", book="x"))
    bench.persist(bench.send("c", "d", book="y"))
    monkeypatch.setattr(origin, "load_stored", broken)
    fail(bench)
    bench.wake("x", "y")
    assert fates(bench) == [
        ("dead", "KeyError"),
        ("consumed", None),
        ("consumed", "ValueError"),
        ("consumed", None),
    ]
    [(reason,)] = bench.query(f"SELECT error FROM {table(bench)} WHERE status = 'dead'")
    assert reason == "what is stored of it cannot be loaded: KeyError"


@pytest.mark.parametrize("arrives", ["by a record", "by a wake-up call"])
def test_one_that_the_server_cannot_read_is_dead_after_six_deaths_and_no_other_is(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, arrives: str
) -> None:
    """As when a block of its payload is damaged: XX001, whoever asks for it."""
    fail(bench, "a", "c")
    first = bench.send("a", "b", book="x")
    bench.persist(first)
    second = bench.send("c", "d", book="y")
    bench.persist(second)
    fail(bench)
    bench.query(f"UPDATE {table(bench)} SET next_retry_at = now() WHERE status = 'retrying'")
    [(damaged,)] = bench.query(f"SELECT min(outbox_id) FROM {table(bench)}")
    execute: Any = Transaction.execute

    async def unreadable(self: Transaction, name: str, **parameters: Any) -> Any:
        if name in ("payloads", "open_rows") and damaged in parameters["bodies"]:
            raise psycopg.errors.DataCorrupted
        return await execute(self, name, **parameters)

    monkeypatch.setattr(Transaction, "execute", unreadable)
    worker, topic = bench.worker, TOPIC
    records: list[Any] = [*first.records, *second.records]
    if arrives == "by a wake-up call":
        topic = TOPIC + RETRY_SUFFIX
        records = [Record(0, place, key, b"", [], 0) for place, key in enumerate([b"x", b"y"])]

    async def live() -> None:
        """One process, from its assignment on: it works the run, or ends by it."""
        worker.suspects.assigned([(topic, 0)])
        suspicion = worker.suspects.of(topic, 0)
        assert suspicion is not None
        suspicion.delivered(10**6)
        run = Run(topic, 0, records, suspicion=suspicion)
        job: Job = PersistRun(worker, run)
        if topic != TOPIC:
            job = WakeConversations(worker, TOPIC, run)
        async with worker.suspects.busy([suspicion]):
            await asyncio.wait_for(count_crashes(worker, job), 60)

    deaths = 0
    while True:
        try:
            bench.run(live())
        except psycopg.errors.DataCorrupted:
            deaths += 1
            assert deaths <= ISOLATE + STRIKES  # and the first one, which nobody notes: six
        else:
            break
    assert deaths == ISOLATE + STRIKES
    assert fates(bench)[0] == ("dead", "crash")
    assert fates(bench)[2] == ("consumed", "ValueError")
    assert bench.query("SELECT count(*) FROM outbox_message_crashes") == [(0,)]
