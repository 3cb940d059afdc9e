"""What may be everybody's fault is tried with a message that worked, before anybody is charged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from streams import Batch, Reject
from streams.worker.driver.runs import Run
from tests.fixtures.workbench import Handle, Note, Workbench

# Each message makes a row in both; `likes` has the key that the docs recommend.
TABLES = """
CREATE TABLE likes (outbox_id bigint PRIMARY KEY, note text);
CREATE TABLE second (note text);
"""


@pytest.fixture(params=["outbox", "envelope"])
def bench(request: pytest.FixtureRequest, database: str) -> Iterator[Workbench]:
    with Workbench(database, envelopes=request.param == "envelope") as workbench:
        workbench.query(TABLES)
        yield workbench


async def insert(messages: Batch[Note], db: AsyncConnection, table: str, columns: str) -> None:
    statement = (
        f"INSERT INTO {table} ({columns}) SELECT {columns}"
        " FROM json_to_recordset(:m) AS m (outbox_id bigint, book text, note text)"
    )
    await db.execute(text(statement), {"m": messages.json()})


def into(table: str, columns: str) -> Handle:
    """A handler that writes there first, and then into `second`."""

    async def save(messages: Batch[Note], db: AsyncConnection) -> None:
        await insert(messages, db, table, columns)
        await insert(messages, db, "second", "note")

    return save


def waits(bench: Workbench, run: Run, *mend: str) -> None:
    """The run waits until the database is mended, and nobody is charged for it."""

    async def until_mended() -> None:
        work = await bench.until_waiting(run)
        for statement in mend:
            bench.query(statement)
        assert await work is not None

    before = bench.fates()
    bench.run(until_mended())
    assert bench.fates() == [*before, *[(note, "consumed", 0, None) for note in ("a", "b", "c")]]


FIRST = {
    "the recommended key": ("likes", "outbox_id, note"),
    "a unique column of its own": ("notes", "outbox_id, book, note"),
}


@pytest.mark.parametrize("first", FIRST.values(), ids=list(FIRST))
def test_a_second_statement_that_cannot_work_is_everybodys_whatever_the_first_one_says(
    bench: Workbench, first: tuple[str, str]
) -> None:
    """Its row was there already, so the one that worked met 23505 and counted as working.

    Everybody was charged, and dead after 20 attempts.
    """
    bench.handler = into(*first)
    bench.persist(bench.send("before"))
    bench.query("ALTER TABLE second RENAME TO gone")
    waits(bench, bench.send("a", "b", "c"), "ALTER TABLE gone RENAME TO second")


def test_one_that_fails_in_another_way_when_it_is_tried_again_proves_nothing(
    bench: Workbench,
) -> None:
    handler = into("likes", "outbox_id, note")
    calls: list[str] = []

    async def rejects(messages: Batch[Note], db: AsyncConnection) -> None:
        calls.extend(message.payload.note for message in messages)
        if calls.count("before") > 1 and "before" in calls[-len(messages) :]:
            raise Reject("it is there")
        await handler(messages, db)

    bench.handler = rejects
    bench.persist(bench.send("before"))
    bench.query("ALTER TABLE second RENAME TO gone")
    waits(bench, bench.send("a", "b", "c"), "ALTER TABLE gone RENAME TO second")
    assert calls.count("before") > 1


def test_what_a_deferred_constraint_says_is_asked_of_the_one_that_worked_too(
    bench: Workbench,
) -> None:
    """It was called, and never asked: everybody but it had met 42P01."""
    bench.handler = into("likes", "outbox_id, note")
    bench.query(
        "CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$"
        " BEGIN PERFORM FROM elsewhere; RETURN NULL; END $$"
    )
    bench.query("CREATE TABLE elsewhere ()")
    bench.query(
        "CREATE CONSTRAINT TRIGGER look AFTER INSERT ON second DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION look()"
    )
    bench.persist(bench.send("before"))
    bench.query("ALTER TABLE elsewhere RENAME TO gone")
    waits(bench, bench.send("a", "b", "c"), "ALTER TABLE gone RENAME TO elsewhere")


def test_one_message_that_a_statement_cannot_work_for_is_charged_alone(bench: Workbench) -> None:
    """The one that worked works again, as nobody's: no row of its own is in its way."""
    handler: Any = into("likes", "outbox_id, note")
    ids: list[int] = []

    async def fails(messages: Batch[Note], db: AsyncConnection) -> None:
        ids.extend(message.outbox_id for message in messages)
        await handler(messages, db)
        if any(message.payload.note == "bad" for message in messages):
            await db.execute(text("SELECT FROM of_bad"))

    bench.handler = fails
    bench.persist(bench.send("before"))
    bench.persist(bench.send("bad"), 30)
    assert bench.fates() == [("before", "consumed", 0, None), ("bad", "retrying", 1, "42P01")]
    assert bench.query("SELECT note FROM likes") == [("before",)]
    assert bench.query("SELECT note FROM second") == [("before",)]
    # Under an id that no message has.
    assert -ids[0] in ids
    assert ids.count(ids[0]) == 1
