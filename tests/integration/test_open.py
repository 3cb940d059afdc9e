"""What is open stands in one small table, whoever writes the states, and asking it stays quick."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from streams.database import connect, query
from streams.events import Batch
from streams.relay.leader.housekeeping import Housekeeping
from streams.worker.driver.runs import Run
from streams.worker.failure import probe
from streams.worker.run.transaction import Transaction
from tests.fixtures.workbench import TOPIC, Note, Workbench

# What a worker of the version before writes and asks: it knows the states only.
OLD_SET_ASIDE = """
INSERT INTO outbox_state
       (outbox_id, status, partition, "offset", arrived, topic, key, attempts, next_retry_at)
VALUES (%s, 'retrying', 0, 0, nextval('outbox_arrived'), %s, %s, 1, now() + interval '1 hour')"""
OLD_LINE = "SELECT outbox_id FROM outbox_state WHERE topic = %s AND key = %s ORDER BY arrived"
OLD_SETTLE = """
UPDATE outbox_state
SET status = 'consumed', applied = nextval('outbox_applied'), topic = NULL, key = NULL,
    next_retry_at = NULL
WHERE outbox_id = %s"""
OPENED = """
INSERT INTO outbox_state (outbox_id, status, partition, "offset", arrived, topic, key)
SELECT id, 'parked', 0, 0, nextval('outbox_arrived'), %s, 'k' || id
FROM generate_series(%s::bigint, %s::bigint) AS id"""
SETTLED = """
UPDATE outbox_state SET status = 'consumed', applied = 1, topic = NULL, key = NULL
WHERE outbox_id BETWEEN %s AND %s"""


@pytest.fixture
def bench(database: str) -> Iterator[Workbench]:
    """A worker for a topic of notes."""
    with Workbench(database) as bench:
        yield bench


def line(bench: Workbench) -> list[int]:
    """What is open, in its order; it has to be what the states say."""
    everything = {"after": -1, "until": 2**62, "ids": None}
    assert bench.connection.execute(query("audit_open"), everything).fetchall() == []
    return [row[0] for row in bench.query("SELECT outbox_id FROM outbox_open ORDER BY arrived")]


@pytest.mark.parametrize("source", ["", "seed"], ids=["ours", "another system's"])
def test_a_conversation_waits_since_its_message_was_set_aside_not_since_its_last_try(
    bench: Workbench, source: str
) -> None:
    """A retry every minute for hours looked like a minute."""
    table = "outbox_foreign" if source else "outbox_state"

    def write(status: str, *, minutes: int, is_open: bool = True) -> None:
        names, values = "(outbox_id, status, attempts, updated_at, topic, key, arrived", [
            7, status, 1, minutes, TOPIC if is_open or source else None, "k" if is_open else None, 1
        ]  # fmt: skip
        names += ", source, open)" if source else ")"
        more = ", %s, %s" if source else ""
        bench.query(
            f"INSERT INTO {table} {names} VALUES (%s, %s, %s,"
            f" timestamptz '2020-01-01Z' + %s * interval '1 minute', %s, %s, %s{more})"
            f" ON CONFLICT ({'source, ' if source else ''}outbox_id) DO UPDATE"
            " SET status = excluded.status, updated_at = excluded.updated_at,"
            " topic = excluded.topic, key = excluded.key"
            + (", open = excluded.open" if source else ""),
            *values,
            *([source, is_open] if source else []),
        )

    def since() -> list[int]:
        """In minutes, as the pages, the command and the gauge have it."""
        everything = {"topic": None, "key": None, "held": False, "limit": 9, "among": None}
        shown = bench.connection.execute(query("look_heads"), everything).fetchall()
        told = bench.connection.execute(
            query("waiting_conversations"), everything | {"source": None}
        ).fetchall()
        begin = datetime(2020, 1, 1, tzinfo=UTC)
        minutes = [round((row[at] - begin).total_seconds() / 60) for rows, at in
                   ((shown, 6), (told, 7)) for row in rows]  # fmt: skip
        [(oldest,)] = bench.connection.execute(query("oldest_open")).fetchall()
        if oldest is not None:
            minutes.append(round(((datetime.now(UTC) - begin).total_seconds() - oldest) / 60))
        return minutes

    write("retrying", minutes=1)
    write("retrying", minutes=2)
    write("dead", minutes=3)
    assert since() == [1, 1, 1]
    write("consumed", minutes=4, is_open=False)
    assert since() == []
    write("retrying", minutes=5)
    write("retrying", minutes=6)
    assert since() == [5, 5, 5]


@pytest.mark.parametrize("envelopes", [False, True], ids=["ours", "another system's"])
def test_it_waits_as_long_whatever_a_worker_tries(database: str, envelopes: bool) -> None:
    """Each try settles its message and opens it again, in one transaction."""
    table = "outbox_foreign" if envelopes else "outbox_open"

    async def refuse(messages: Batch[Note], db: AsyncConnection) -> None:
        raise ValueError("not now")

    with Workbench(database, envelopes=envelopes) as bench:

        def waits() -> list[tuple[bool]]:
            """Whether it waits for an hour, of each message that is open."""
            return bench.query(
                f"SELECT opened < now() - interval '59 minutes' FROM {table}"
                " WHERE opened IS NOT NULL ORDER BY outbox_id"
            )

        works, bench.handler = bench.handler, refuse
        bench.persist(bench.send("one", "two", book="b"))
        assert waits() == [(False,), (False,)]
        bench.query(f"UPDATE {table} SET opened = opened - interval '1 hour'")
        bench.wake("b")
        assert [fate[2] for fate in bench.fates()] == [2, 0]
        assert waits() == [(True,), (True,)]
        bench.handler = works
        bench.wake("b")
        assert waits() == []
        assert {fate[1] for fate in bench.fates()} == {"consumed"}


def test_a_worker_that_knows_only_the_states_and_one_that_asks_what_is_open_keep_one_order(
    bench: Workbench,
) -> None:
    first, second, third = ([bench.send(note, book="b")] for note in ("one", "two", "three"))
    [one, two, three] = [row[0] for row in bench.query("SELECT id FROM outbox ORDER BY id")]
    bench.query(OLD_SET_ASIDE, one, TOPIC, "b")
    assert line(bench) == [one]
    bench.persist(second[0])
    assert bench.saved() == [], "it overtook what the other worker had set aside"
    assert [row[0] for row in bench.query(OLD_LINE, TOPIC, "b")] == line(bench) == [one, two]
    bench.query(OLD_SETTLE, one)
    assert line(bench) == [two]
    bench.persist(third[0])
    assert [row[0] for row in bench.query(OLD_LINE, TOPIC, "b")] == line(bench) == [two, three]
    bench.wake("b")
    assert bench.saved() == ["two", "three"]
    assert line(bench) == []
    bench.persist(first[0])
    bench.query("DELETE FROM outbox_state")
    bench.query(OLD_SET_ASIDE, one, TOPIC, "b")
    bench.query("DELETE FROM outbox_state")
    assert line(bench) == []


def test_where_the_probe_is_slow_runs_are_worked_by_conversation(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    together = Transaction._together

    async def listening(self: Transaction, *what: Any) -> Any:
        asked.extend(name for name, _ in what)
        return await together(self, *what)

    monkeypatch.setattr(Transaction, "_together", listening)
    monkeypatch.setattr(probe, "SLOW_SECONDS", -1.0)
    for note in ("a", "b"):
        bench.persist(bench.send(note))
    assert asked.count("probe") == 2
    bench.query(OLD_SET_ASIDE, bench.query("SELECT nextval('outbox_id_seq')")[0][0], TOPIC, "held")
    free, behind, broken = bench.send("c"), bench.send("d", book="held"), bench.send("e", "f")
    broken = Run(TOPIC, 0, [broken.records[0]._replace(value=b"{"), broken.records[1]])
    for run in (free, behind, broken):
        bench.persist(run)
    assert asked.count("probe") == 2
    assert bench.saved() == ["a", "b", "c", "e", "f"]
    assert bench.query("SELECT status FROM outbox_state WHERE key = 'held' ORDER BY arrived") == [
        ("retrying",),
        ("parked",),
    ]


async def test_a_leader_sweeps_what_is_open_no_more(bench: Workbench) -> None:
    bench.query("ALTER TABLE outbox_open SET (autovacuum_enabled = off)")
    bench.query(OPENED, TOPIC, 1, 2000)
    bench.query(SETTLED, 1, 2000)
    bench.query("SELECT pg_stat_force_next_flush()")
    async with await connect(bench.url) as connection, asyncio.timeout(30):
        dead: tuple[Any, ...] | None = None
        while dead is None or not dead[0]:
            dead = await (await connection.execute(query("open_churns"))).fetchone()
        await Housekeeping(bench.settings, [TOPIC]).round(connection)
        while dead is None or dead[0]:
            dead = await (await connection.execute(query("open_churns"))).fetchone()
    assert bench.query(
        "SELECT vacuum_count FROM pg_stat_user_tables WHERE relname = 'outbox_open'"
    ) == [(1,)]


@pytest.mark.long
def test_300_000_rows_that_came_and_went_under_an_old_snapshot_cost_a_clean_run_at_most_twice(
    bench: Workbench,
) -> None:
    def clean() -> float:
        """The quickest of some: whoever else uses the machine makes the others slower."""
        took = []
        for _ in range(15):
            run = bench.send(*(f"{time.monotonic_ns()}" for _ in range(500)))
            began = time.monotonic()
            bench.persist(run)
            took.append(time.monotonic() - began)
        return min(took)

    clean()
    before = clean()
    with closing(psycopg.connect(bench.url)) as old:
        old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT count(*) FROM outbox_rejects")
        [(newest,)] = bench.query("SELECT max(id) FROM outbox")
        for first in range(newest + 1, newest + 300_001, 10_000):
            bench.query(OPENED, TOPIC, first, first + 9_999)
            bench.query(SETTLED, first, first + 9_999)
        bench.query("SELECT setval('outbox_id_seq', %s)", newest + 300_001)
        after = clean()
    assert after <= 2 * before, (before, after)
