"""What it costs to find a message that fails without being named.

It fails in the database, in the real transaction.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.fixtures.listed import TOPIC
from tests.fixtures.simulation import Bench, Handler
from tests.fixtures.stage import Stage

COUNT, BAD = 300, 77
REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.note = '{}' THEN RAISE EXCEPTION 'no' USING ERRCODE = '22000'; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON notes FOR EACH ROW EXECUTE FUNCTION refuse();
"""


@pytest.fixture
def stage(database: str) -> Iterator[Stage]:
    """As many messages of one conversation, of which the database refuses one."""
    with Bench(database) as bench:
        stage = Stage(bench)
        for _ in range(COUNT):
            stage.insert(bench.connection, "a", "plain")
        rows = stage.committed()
        stage.send(rows)
        bench.connection.execute(REFUSE.format(f"n{BAD + 1:04}").encode())
        yield stage


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many messages each call of the handler got."""
    found: list[int] = []
    handle = Handler.__call__

    async def counted(self: Handler, messages: Any, db: Any) -> None:
        found.append(len(messages))
        await handle(self, messages, db)

    monkeypatch.setattr(Handler, "__call__", counted)
    return found


def deliver(stage: Stage) -> None:
    run = stage.next_run(0, COUNT)
    assert run is not None
    assert stage.bench.run(stage.bench.workers[0].persist(run)) is not None
    [(bad,)] = stage.bench.query("SELECT outbox_id FROM outbox_state WHERE status = 'dead'")
    assert stage.bench.query("SELECT count(*) FROM outbox_state WHERE status = 'consumed'") == [
        (COUNT - 1,)
    ]
    notes = [one for (one,) in stage.bench.query("SELECT DISTINCT outbox_id FROM notes ORDER BY 1")]
    assert notes == [one for one in range(notes[0], notes[-1] + 1) if one != bad]
    assert notes[BAD - 1] + 1 == bad


def test_the_rows_that_were_inserted_lead_to_the_one_that_was_not(
    stage: Stage, calls: list[int]
) -> None:
    deliver(stage)
    everything, piece, before, alone, *rest = calls
    assert (everything, before, alone) == (COUNT, BAD, 1)
    assert piece > BAD
    assert len(rest) <= 3


def test_a_table_of_partitions_counts_too(stage: Stage, calls: list[int]) -> None:
    stage.bench.connection.execute(
        "DROP TABLE notes; CREATE TABLE notes (id bigint GENERATED ALWAYS AS IDENTITY,"
        " outbox_id bigint, book text, note text) PARTITION BY RANGE (outbox_id);"
        " CREATE TABLE notes_rest PARTITION OF notes DEFAULT; CREATE TRIGGER refuse BEFORE INSERT"
        " ON notes FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    deliver(stage)
    assert calls[2:4] == [BAD, 1]


@pytest.mark.parametrize(
    "save",
    [
        pytest.param(
            "INSERT INTO notes (outbox_id, book, note) SELECT 0, 'x', 'x'"
            " FROM generate_series(1, 20)",
            id="more rows",
        ),
        pytest.param("SELECT 1", id="no rows"),
    ],
)
def test_a_handler_whose_rows_say_nothing_costs_a_few_calls_once(
    stage: Stage, calls: list[int], monkeypatch: pytest.MonkeyPatch, save: str
) -> None:
    """It wrote other rows before; what is looked at first is then not where the guilty one is."""
    handle = Handler.__call__

    async def other(self: Handler, messages: Any, db: Any) -> None:
        await db.exec_driver_sql(save)
        await handle(self, messages, db)

    monkeypatch.setattr(Handler, "__call__", other)
    run = stage.next_run(0, COUNT)
    assert run is not None
    worker = stage.bench.workers[0]
    assert stage.bench.run(worker.persist(run)) is not None
    assert stage.bench.query("SELECT status, count(*) FROM outbox_state GROUP BY 1 ORDER BY 1") == [
        ("consumed", COUNT - 1),
        ("dead", 1),
    ]
    assert stage.bench.query("SELECT count(*) FROM notes WHERE book = 'a'") == [(COUNT - 1,)]
    assert len(calls) <= 16
    row_count_unreliable = worker.attempts.history(TOPIC).row_count_unreliable
    assert row_count_unreliable == (set() if save == "SELECT 1" else {"plain"})
