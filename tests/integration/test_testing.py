"""`streams.testing` as a user's test calls it.

The fate of events on a real PostgreSQL, and a batch for a handler.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from streams import Message, PayloadInvalid, outbox, registry
from streams.agents.chat_history import ChatHistoryPersist
from streams.database import async_engine
from streams.dev.postgres import PostgresServer
from streams.errors import NotMigrated, RegistryInvalid, ServiceUnreachable, UsageError
from streams.testing import WouldWait, batch, persist, persist_sync, retry, retry_sync
from tests.fixtures.notes import AGENT, TABLES
from tests.fixtures.projects import importable


def chat(number: int, **changes: Any) -> ChatHistoryPersist:
    message = {"user_id": 1, "conversation_id": "c1", "role": "user", "message": f"m {number}"}
    return ChatHistoryPersist(**{**message, **changes})


@pytest.fixture
def note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, database: str) -> Iterator[Any]:
    """A user's project whose notes fail on demand, as the working folder: makes one note."""
    source = AGENT
    for name, value in {
        "FIRST_DELAY": 4.0,
        "MOST_DELAY": 8.0,
        "ATTEMPTS": 3,
        "ON_DEAD": "continue",
    }.items():
        source = source.replace(name, str(value))
    (tmp_path / "notepad.py").write_text(source)
    (tmp_path / "faust.yml").write_text("agents: [streams.agents, notepad]\n")
    monkeypatch.chdir(tmp_path)
    importable(tmp_path, monkeypatch)
    for name in [name for name in os.environ if name.startswith("STREAMS_")]:
        monkeypatch.delenv(name)
    with psycopg.connect(database) as connection:
        connection.execute(TABLES)

    def make(text: Any, book: str = "b1") -> Any:
        import notepad  # type: ignore[import-not-found]  # made above

        return notepad.NoteAdded(book=book, note=text)

    registry.discover(["notepad"])
    yield make
    del sys.modules["notepad"]


@pytest.fixture
async def engine(database: str) -> AsyncIterator[AsyncEngine]:
    engine = async_engine(database)
    yield engine
    await engine.dispose()


def rows(database: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(database, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


async def test_each_event_has_its_fate_in_the_order_given(note: Any, database: str) -> None:
    given = [
        note("a"),
        note("reject", "b2"),
        note("b", "b2"),
        note("raise", "b3"),
        note("c", "b3"),
        note("later", "b4"),
    ]
    fates = await persist(database, given)
    assert fates.statuses == ["consumed", "dead", "consumed", "retrying", "parked", "retrying"]
    assert [fate.attempts for fate in fates] == [0, 1, 0, 1, 0, 1]
    assert (fates[1].error_code, fates[1].error) == ("closed", "the book is closed")
    assert fates[3].error_code == "ValueError"
    assert re.fullmatch(
        r"the handler raised ValueError, at notepad\.py:\d+ in save", fates[3].error or ""
    )
    # What pytest shows where the statuses are not the expected ones.
    assert repr(fates.statuses[2:4]) == f"['consumed', 'retrying' (ValueError: {fates[3].error})]"
    assert 3.0 <= (fates[3].delay or 0) <= 5.0 and fates[5].delay == 0.5
    assert fates.written == 2
    assert rows(database, "SELECT book, note FROM notes ORDER BY id") == [("b1", "a"), ("b2", "b")]
    assert (
        repr(fates[1])
        != str(fates[1])
        == f"note_added {fates.ids[1]} is dead (closed: the book is closed)"
    )


async def test_retries_do_not_wait_and_keep_the_order(note: Any, database: str) -> None:
    rows(database, "INSERT INTO faults VALUES ('x')")
    fates = await persist(database, [note("x"), note("y"), note("z")])
    assert fates.statuses == ["retrying", "parked", "parked"]
    again = await retry(database)
    assert (again.statuses, again[0].attempts, again.ids) == (
        ["retrying", "parked", "parked"],
        2,
        fates.ids,
    )
    rows(database, "DELETE FROM faults")
    assert (await retry(database)).statuses == ["consumed"] * 3
    assert rows(database, "SELECT note, attempts FROM notes ORDER BY id") == [
        ("x", 2),
        ("y", 0),
        ("z", 0),
    ]
    assert len(await retry(database)) == 0


async def test_a_message_whose_attempts_are_used_up_is_dead_and_the_next_follow(
    note: Any, database: str
) -> None:
    await persist(database, [note("raise"), note("y")])
    await retry(database)
    last = await retry(database)
    assert (last.statuses, last[0].attempts) == (["dead", "consumed"], 3)


async def test_a_message_that_was_delivered_before_has_no_second_effect(
    note: Any, database: str
) -> None:
    fates = await persist(database, [note("a"), note("raise", "b2"), note("reject", "b3")])
    again = await persist(database, fates.ids + fates.ids)
    assert again.statuses == fates.statuses * 2
    assert (fates.written, again.written) == (1, 0)
    assert rows(database, "SELECT count(*) FROM notes") == [(1,)]


async def test_in_a_callers_transaction_nothing_is_committed(
    note: Any, database: str, engine: AsyncEngine
) -> None:
    async with engine.connect() as connection:
        fates = await persist(connection, [note("a"), note("raise", "b2"), chat(1)])
        assert fates.statuses == ["consumed", "retrying", "consumed"]
        assert (await retry(connection)).statuses == ["retrying"]
        assert await connection.scalar(text("SELECT count(*) FROM notes")) == 1
        await connection.rollback()
    assert rows(database, "SELECT (SELECT count(*) FROM notes), (SELECT count(*) FROM outbox)") == [
        (0, 0)
    ]


async def test_a_message_that_business_code_enqueued_is_delivered_by_its_id(
    note: Any, engine: AsyncEngine
) -> None:
    outbox.start()
    try:
        async with AsyncSession(engine) as session:
            ids = await outbox.enqueue(session, [note("a"), note("b")])
            by_sql = (
                "SELECT outbox_enqueue('chat_history_persist', 'c9', '{\"user_id\": 1,"
                ' "conversation_id": "c9"}\')'
            )
            broken = await session.scalar(text(by_sql))
            fates = await persist(session, [*ids, broken])
            assert fates.statuses == ["consumed", "consumed", "dead"]
            assert fates[2].error == "'role': expected a value, got none"
    finally:
        outbox.close()


async def test_time_and_memory_are_charged_to_the_guilty_message(note: Any, database: str) -> None:
    rows(database, "INSERT INTO faults VALUES ('slow', '57014')")
    fates = await persist(database, [note("a"), note("slow", "b2"), note("c", "b3")])
    assert fates.statuses == ["consumed", "retrying", "consumed"]
    assert fates[1].error_code == "57014"


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (
            "DROP TABLE notes",
            (
                r"every note_added fails with 42P01: UndefinedTable: table notes,"
                r" at notepad\.py:\d+ in save, a bug or"
            ),
        ),
        (
            "INSERT INTO faults VALUES ('a', '42501')",
            "every note_added fails with 42501: InsufficientPrivilege, .*, a bug or",
        ),
        (
            "INSERT INTO faults VALUES ('a', '55P03')",
            "every note_added fails with 55P03: LockNotAvailable, .*, a bug or",
        ),
    ],
)
async def test_where_a_worker_would_wait_the_test_is_told(
    note: Any, database: str, spoil: str, complaint: str
) -> None:
    rows(database, spoil)
    with pytest.raises(WouldWait, match=complaint) as caught:
        await persist(database, [note("a")])
    assert caught.value.__cause__ is not None
    assert rows(database, "SELECT count(*) FROM outbox_state") == [(0,)]


async def test_an_event_that_enqueue_refuses_is_refused(note: Any, database: str) -> None:
    with pytest.raises(PayloadInvalid, match="note_added: 'note' is of type int: expected str"):
        await persist(database, [note("a"), note(7)])
    with pytest.raises(RegistryInvalid, match="is not an event: decorate it"):
        await persist(database, ["a"])
    with pytest.raises(
        UsageError,
        match="no outbox row has the id 999: expected an event, or the id of an enqueued one",
    ):
        await persist(database, [999])
    Path("faust.yml").write_text("agents: []\n")
    with pytest.raises(
        PayloadInvalid,
        match="note_added: no agent for it was discovered; add its package to `agents`",
    ):
        await persist(database, [note("a")])
    assert rows(database, "SELECT count(*) FROM outbox") == [(0,)]
    with pytest.raises(
        UsageError,
        match=(
            "a PosixPath was given: expected a database URL, an AsyncConnection or an AsyncSession"
        ),
    ):
        await persist(Path("faust.yml"), [note("a")])  # type: ignore[arg-type]


async def test_a_database_that_is_not_ready_is_one_clear_line(postgres: PostgresServer) -> None:
    with pytest.raises(
        NotMigrated, match=r"at revision \(none\), expected .*: run `streams migrate`"
    ):
        await persist(postgres.url, [chat(1)])
    engine = async_engine(postgres.url)
    async with engine.connect() as connection:
        with pytest.raises(NotMigrated):
            await persist(connection, [chat(1)])
    await engine.dispose()
    with pytest.raises(
        ServiceUnreachable, match=r"PostgreSQL at postgresql://me@127\.0\.0\.1:1/d cannot be"
    ):
        await persist("postgresql://me@127.0.0.1:1/d", [chat(1)])


def test_without_an_event_loop_the_twins_do_the_same(note: Any, database: str) -> None:
    assert persist_sync(database, [note("raise"), note("b")]).statuses == ["retrying", "parked"]
    assert retry_sync(database).statuses == ["retrying", "parked"]


def test_a_batch_holds_what_a_handler_gets() -> None:
    made = batch(
        [chat(1), chat(2, tokens_consumed=5)],
        first_id=7,
        attempts=2,
        created_at=datetime(2026, 1, 31, 12),
    )
    assert made[1] == Message(8, "c1", chat(2, tokens_consumed=5), 1_769_860_800_000, 2)
    assert made[0].created_at == datetime(2026, 1, 31, 12)
    with pytest.raises(
        PayloadInvalid, match=r"'user_id' is of type str \(1 characters\): expected int"
    ):
        batch([chat(1, user_id="x")])


def test_a_batch_of_two_biz_types_is_refused(note: Any) -> None:
    with pytest.raises(
        UsageError,
        match="a batch holds one biz_type, these events are of chat_history_persist, note_added",
    ):
        batch([chat(1), note("a")])


def test_it_needs_neither_faust_nor_kafka() -> None:
    code = (
        "import streams.testing, sys; print({'faust', 'mode', 'aiokafka',"
        " 'confluent_kafka'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "set()\n"


def test_large_messages_behind_a_failing_one_are_read_in_portions(note: Any, database: str) -> None:
    """However many wait: what is read at once has a limit in bytes, and their order stays."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("INSERT INTO faults VALUES ('first')")
        large = [os.urandom(300_000).hex() for _ in range(6)]
        assert persist_sync(database, [note("first"), *map(note, large)]).statuses == [
            "retrying",
            *["parked"] * 6,
        ]
        connection.execute("DELETE FROM faults")
        portions = [retry_sync(database).statuses.count("consumed")]
        while portions[-1]:
            portions.append(retry_sync(database).statuses.count("consumed"))
        assert sum(portions) == 7
        assert max(portions) < 6
        saved = connection.execute("SELECT note FROM notes ORDER BY id").fetchall()
    assert [one for (one,) in saved] == ["first", *large]
