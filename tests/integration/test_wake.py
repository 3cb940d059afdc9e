"""A conversation that is woken.

What becomes of its first message, and of those behind it in the same transaction.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from streams import Batch
from tests.fixtures.workbench import Note, Workbench, save


@pytest.fixture
def bench(database: str) -> Iterator[Workbench]:
    with Workbench(database) as bench:
        yield bench


async def refuse(messages: Batch[Note], db: AsyncConnection) -> None:
    """What begins with `bad` fails in the database, after the rest was written."""
    await save(messages, db)
    if any(message.payload.note.startswith("bad") for message in messages):
        await db.execute(text("SELECT fail('P0001')"))


def test_a_message_that_died_stays_dead_when_the_next_of_its_conversation_fails_at_once(
    bench: Workbench,
) -> None:
    bench.handler = refuse
    bench.persist(bench.send("bad 1", "bad 2", "good", book="one"))
    for _ in range(2):
        bench.wake("one")
    fates = [(note, status) for note, status, _, _ in bench.fates()]
    assert fates == [("bad 1", "dead"), ("bad 2", "retrying"), ("good", "parked")]
    assert bench.saved() == []
    for _ in range(3):
        bench.wake("one")
    fates = [(note, status) for note, status, _, _ in bench.fates()]
    assert fates == [("bad 1", "dead"), ("bad 2", "dead"), ("good", "consumed")]
    with psycopg.connect(bench.url) as connection:
        assert connection.execute(
            "SELECT outbox_id FROM outbox_dead_letters ORDER BY 1"
        ).fetchall() == [(1,), (2,)]


def test_an_act_that_commits_after_a_later_one_is_noticed_too(bench: Workbench) -> None:
    """Its id is the lower one: nobody would look for what it set free until half a minute later."""
    act = "INSERT INTO outbox_actions (who, act) VALUES ('ann', 'release')"
    database = bench.worker.database

    def looked() -> int:
        assert bench.run(database.reachable())
        return database.newest_act

    with psycopg.connect(bench.url) as slow:
        slow.execute(act)
        before = looked()
        bench.query(act)
        between = looked()
    assert len({before, between, looked()}) == 3
    assert looked() == looked()
