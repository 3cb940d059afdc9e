"""The outbox: business code writes events in its own transaction, and nothing else happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, Delete, Engine, Update, create_engine, text
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from streams import outbox
from streams.agents.chat_history import ChatHistoryPersist
from streams.database import async_engine, sync_engine
from streams.errors import (
    OutboxDisabled,
    OutboxNotConfigured,
    PayloadInvalid,
    RegistryInvalid,
    SettingsInvalid,
    UsageError,
)
from streams.events import Batch, declared, event
from streams.registry import Agent, Registry
from streams.settings import Outbox, Settings, load
from streams.sync_handler import run_sync

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def chat(conversation: str = "c1", message: str = "hi", user: int = 7) -> ChatHistoryPersist:
    return ChatHistoryPersist(
        user_id=user, conversation_id=conversation, role="user", message=message
    )


@pytest.fixture
def enabled(database: str) -> Iterator[None]:
    outbox.start(load(environ={"DATABASE_URL": database}))
    yield
    outbox.close()


@pytest.fixture
def disabled(database: str) -> Iterator[None]:
    outbox.start(load(environ={"DATABASE_URL": database, "STREAMS_OUTBOX__ENABLED": "false"}))
    yield
    outbox.close()


@pytest.fixture
def engine(database: str) -> Iterator[Engine]:
    engine = sync_engine(database)
    yield engine
    engine.dispose()


@pytest.fixture
async def aengine(database: str) -> AsyncIterator[AsyncEngine]:
    engine = async_engine(database)
    yield engine
    await engine.dispose()


@pytest.fixture
def rows(database: str) -> Callable[..., list[tuple[Any, ...]]]:
    """`rows(table, columns)`: what another session sees, so what is committed."""

    def rows(columns: str = "id, key", table: str = "outbox") -> list[tuple[Any, ...]]:
        with psycopg.connect(database) as connection:
            return connection.execute(
                f"SELECT {columns} FROM {table} ORDER BY 1".encode()
            ).fetchall()

    return rows


Rows = Callable[..., list[tuple[Any, ...]]]


@pytest.mark.usefixtures("enabled")
async def test_an_async_session_enqueues_in_its_transaction(
    aengine: AsyncEngine, rows: Rows
) -> None:
    async with AsyncSession(aengine) as session, session.begin():
        outbox_id = await outbox.enqueue(session, chat(), traceparent=TRACE)
        assert rows() == []
    assert rows("id, biz_type, topic, key, payload::text, traceparent, resend_of") == [
        (
            outbox_id,
            "chat_history_persist",
            "chat-history",
            "c1",
            '{"user_id":7,"conversation_id":"c1","role":"user","message":"hi"}',
            TRACE,
            None,
        )
    ]


@pytest.mark.usefixtures("enabled")
async def test_an_async_connection_enqueues_in_its_transaction(
    aengine: AsyncEngine, rows: Rows
) -> None:
    async with aengine.begin() as connection:
        outbox_id = await outbox.enqueue(connection, chat())
    assert rows() == [(outbox_id, "c1")]


@pytest.mark.usefixtures("enabled")
def test_a_session_and_a_connection_enqueue_in_their_transaction(
    engine: Engine, rows: Rows
) -> None:
    with Session(engine) as session, session.begin():
        first = outbox.enqueue_sync(session, chat())
        assert rows() == []
    with engine.begin() as connection:
        second = outbox.enqueue_sync(connection, chat("c2"))
    assert rows() == [(first, "c1"), (second, "c2")]


@pytest.mark.usefixtures("enabled")
async def test_scoped_sessions_of_web_frameworks_enqueue_in_their_transaction(
    engine: Engine, aengine: AsyncEngine, rows: Rows
) -> None:
    session = scoped_session(sessionmaker(engine))
    ids = [outbox.enqueue_sync(session, chat("sync"))]
    assert rows() == []
    session.commit()
    session.remove()
    scoped = async_scoped_session(async_sessionmaker(aengine), scopefunc=asyncio.current_task)
    ids.append(await outbox.enqueue(scoped, chat("async")))
    await scoped.commit()
    await scoped.remove()
    assert rows() == [(ids[0], "sync"), (ids[1], "async")]


@pytest.mark.usefixtures("enabled")
async def test_any_driver_of_sqlalchemy_enqueues(database: str, rows: Rows) -> None:
    """psycopg's own way of writing parameters was a syntax error for every other driver.

    It aborted the transaction.
    """
    text_of = "für Ärger € \U0001f40d :colon %percent %(key)s"
    url = make_url(database)
    ids: list[int] = []
    for name in ("postgresql+asyncpg", "postgresql+psycopg"):
        aengine = create_async_engine(url.set(drivername=name))
        async with AsyncSession(aengine) as asession, asession.begin():
            ids.append(await outbox.enqueue(asession, chat("one", text_of), ordered=True))
            ids += await outbox.enqueue(
                asession, [chat("a", text_of), chat("b", text_of)], traceparent=TRACE
            )
        await aengine.dispose()
    for name in ("postgresql+psycopg2", "postgresql+psycopg"):
        engine = create_engine(url.set(drivername=name))
        with Session(engine) as session, session.begin():
            ids.append(outbox.enqueue_sync(session, chat("one", text_of), ordered=True))
            ids += outbox.enqueue_sync(
                session, [chat("a", text_of), chat("b", text_of)], traceparent=TRACE
            )
        engine.dispose()
    assert rows("id, key, payload->>'message', traceparent") == [
        (outbox_id, key, text_of, trace)
        for outbox_id, (key, trace) in zip(
            ids, [("one", None), ("a", TRACE), ("b", TRACE)] * 4, strict=True
        )
    ]


@pytest.mark.usefixtures("enabled")
async def test_the_wrong_kind_of_connection_is_refused_with_the_function_that_takes_it(
    engine: Engine, aengine: AsyncEngine
) -> None:
    anything: Any = Session(engine)
    with pytest.raises(
        UsageError,
        match=r"a sqlalchemy\.orm\.session\.Session was given: .*; enqueue_sync takes this one",
    ):
        await outbox.enqueue(anything, chat())
    anything = AsyncSession(aengine)
    with pytest.raises(
        UsageError,
        match=r"expected a Session, scoped_session or Connection .*; enqueue takes this one",
    ):
        outbox.enqueue_sync(anything, chat())
    anything = engine
    with pytest.raises(
        UsageError, match=r"a sqlalchemy\.engine\.base\.Engine was given: expected a Session"
    ):
        outbox.enqueue_sync(anything, chat())
    with psycopg.connect(
        engine.url.render_as_string(hide_password=False).replace("+psycopg", "")
    ) as connection:
        anything = connection
        with pytest.raises(UsageError, match=r"a psycopg\.Connection was given"):
            outbox.enqueue_sync(anything, chat())


@pytest.mark.usefixtures("enabled")
async def test_a_connection_that_commits_each_statement_is_refused_before_anything_is_sent(
    database: str, engine: Engine, aengine: AsyncEngine, rows: Rows
) -> None:
    """By its engine, by an option of its own, or by its driver: the message would be committed.

    That happened at once, whatever became of the block.
    """
    url = make_url(database)
    refused = "commits each statement .AUTOCOMMIT.: expected one that has a transaction"
    auto = {"isolation_level": "AUTOCOMMIT"}
    for name in ("postgresql+psycopg", "postgresql+psycopg2"):
        committing = create_engine(url.set(drivername=name), **auto)
        scoped = scoped_session(sessionmaker(committing))
        with committing.connect() as connection, Session(committing) as session:
            for act in (outbox.enqueue_sync, outbox.record_sync):
                for db in (connection, session, scoped):
                    with pytest.raises(UsageError, match=refused):
                        act(db, chat())
        scoped.remove()
        committing.dispose()
    driver = create_engine(
        url.set(drivername="postgresql+psycopg"), connect_args={"autocommit": True}
    )
    option = engine.execution_options(**auto)
    for each in (driver, option):
        with each.connect() as connection, pytest.raises(UsageError, match=refused):
            outbox.enqueue_sync(connection, chat())
    driver.dispose()
    with engine.connect() as connection, pytest.raises(UsageError, match=refused):
        outbox.enqueue_sync(connection.execution_options(**auto), chat())
    for name in ("postgresql+psycopg", "postgresql+asyncpg"):
        acommitting = create_async_engine(url.set(drivername=name), **auto)
        ascoped = async_scoped_session(async_sessionmaker(acommitting), asyncio.current_task)
        async with acommitting.connect() as aconnection, AsyncSession(acommitting) as asession:
            for aact in (outbox.enqueue, outbox.record):
                for adb in (aconnection, asession, ascoped):
                    with pytest.raises(UsageError, match=refused):
                        await aact(adb, chat())
        await ascoped.remove()
        await acommitting.dispose()
    assert rows() == []
    # What comes after it in the same pool has a transaction again.
    with engine.begin() as connection:
        outbox.enqueue_sync(connection, chat())
    async with aengine.begin() as aconnection:
        await outbox.enqueue(aconnection, chat())
    assert len(rows()) == 2


@pytest.mark.usefixtures("disabled")
def test_what_is_written_directly_is_not_written_where_each_statement_is_committed(
    database: str, rows: Rows
) -> None:
    committing = create_engine(
        make_url(database).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
    )
    with committing.connect() as connection, pytest.raises(UsageError, match="AUTOCOMMIT"):
        outbox.record_sync(connection, chat())
    committing.dispose()
    assert rows("outbox_id", "outbox_direct") == []


@pytest.mark.usefixtures("enabled")
def test_more_ordered_keys_than_the_server_has_locks_for_are_refused_before_anything_is_sent(
    engine: Engine, rows: Rows
) -> None:
    many = [chat(f"c{number}") for number in range(outbox.ORDERED_KEYS + 1)]
    with engine.begin() as connection:
        with pytest.raises(
            UsageError, match=r"ordered=True with 1001 keys in one call: expected at most 1000"
        ):
            outbox.enqueue_sync(connection, many, ordered=True)
        assert len(outbox.enqueue_sync(connection, many[1:], ordered=True)) == outbox.ORDERED_KEYS
        # The same ones take nothing more, others in a second call are too many.
        assert len(outbox.enqueue_sync(connection, many[1:], ordered=True)) == outbox.ORDERED_KEYS
        with pytest.raises(
            UsageError, match="ordered=True with 1001 keys in one transaction: expected at most"
        ):
            outbox.enqueue_sync(connection, many[:1], ordered=True)
    assert len(rows()) == 2 * outbox.ORDERED_KEYS


@pytest.mark.usefixtures("enabled")
async def test_nothing_commits_but_the_caller(
    aengine: AsyncEngine, engine: Engine, rows: Rows
) -> None:
    commits: list[object] = []
    sqlalchemy_event.listen(engine, "commit", commits.append)
    sqlalchemy_event.listen(aengine.sync_engine, "commit", commits.append)
    async with aengine.connect() as connection:
        await outbox.enqueue(connection, [chat(), chat()], ordered=True)
        await outbox.record(connection, chat())
    with engine.connect() as plain:
        outbox.enqueue_sync(plain, [chat(), chat()], ordered=True)
        outbox.record_sync(plain, chat())
    assert commits == []
    assert rows() == []


@pytest.mark.usefixtures("enabled")
async def test_rolled_back_nothing_is_left(
    aengine: AsyncEngine, engine: Engine, rows: Rows
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with AsyncSession(aengine) as session, session.begin():
            await outbox.enqueue(session, [chat(), chat("c2")])
            raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), Session(engine) as plain, plain.begin():
        outbox.enqueue_sync(plain, chat())
        raise ZeroDivisionError
    assert rows() == []


@pytest.mark.usefixtures("enabled")
def test_a_savepoint_rolled_back_takes_its_events_along(engine: Engine, rows: Rows) -> None:
    with Session(engine) as session, session.begin():
        kept = outbox.enqueue_sync(session, chat("kept"))
        with session.begin_nested() as savepoint:
            outbox.enqueue_sync(session, chat("gone"))
            savepoint.rollback()
    assert rows() == [(kept, "kept")]


def statements(engine: Engine) -> list[str]:
    sent: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        sent.append(statement)

    sqlalchemy_event.listen(engine, "before_cursor_execute", note)
    return sent


@pytest.mark.usefixtures("enabled")
async def test_many_events_are_one_statement_with_ids_in_their_order(
    engine: Engine, aengine: AsyncEngine, rows: Rows
) -> None:
    seen = statements(engine), statements(aengine.sync_engine)
    events = [chat(f"c{number % 7}", f"message {number}") for number in range(1000)]
    with engine.begin() as connection:
        ids = outbox.enqueue_sync(connection, events)
    async with aengine.begin() as other:
        more = await outbox.enqueue(other, tuple(events))
    assert [len(found) for found in seen] == [1, 1]
    assert all("INSERT INTO outbox " in found[0] for found in seen)
    assert ids == sorted(set(ids))
    expected = [
        (outbox_id, f"message {number % 1000}") for number, outbox_id in enumerate([*ids, *more])
    ]
    assert rows("id, payload->>'message'") == expected


@pytest.mark.usefixtures("enabled")
def test_no_events_are_no_statement(engine: Engine) -> None:
    seen = statements(engine)
    with engine.connect() as connection:
        assert outbox.enqueue_sync(connection, []) == []
        assert outbox.enqueue_sync(connection, [], ordered=True) == []
        assert outbox.enqueue_sync(connection, [chat()]) != []
    assert len(seen) == 1


@pytest.mark.usefixtures("enabled")
def test_one_bad_event_among_many_and_nothing_is_written(engine: Engine, rows: Rows) -> None:
    seen = statements(engine)
    with engine.begin() as connection:
        with pytest.raises(
            PayloadInvalid,
            match="chat_history_persist: 'message' is of type int: expected str, got int",
        ):
            outbox.enqueue_sync(connection, [chat(), chat(message=5), chat()])  # type: ignore[arg-type]
        assert seen == []
        kept = outbox.enqueue_sync(connection, chat())
    assert rows() == [(kept, "c1")]


@pytest.mark.usefixtures("enabled")
@pytest.mark.parametrize("thing", [object(), "text", {"user_id": 1}, {1}, None, [None]])
def test_an_object_that_is_no_event_is_named(engine: Engine, thing: object) -> None:
    with (
        engine.connect() as connection,
        pytest.raises(RegistryInvalid, match=r"builtins\.\w+ is not an event"),
    ):
        outbox.enqueue_sync(connection, thing)


@pytest.mark.usefixtures("enabled")
async def test_ordered_transactions_of_one_key_take_turns_and_of_two_keys_do_not(
    aengine: AsyncEngine, rows: Rows, eventually: Callable[..., Any]
) -> None:
    async def enqueue(*keys: str) -> list[int]:
        async with aengine.begin() as connection:
            return await outbox.enqueue(connection, [chat(key) for key in keys], ordered=True)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group, aengine.begin() as connection:
        first = await outbox.enqueue(connection, chat("shared"), ordered=True)
        waiting = group.create_task(enqueue("b", "shared", "a"))
        await eventually(
            lambda: rows("pid", "pg_locks WHERE locktype = 'advisory' AND NOT granted")
        )
        [other] = await enqueue("other")
        last = await outbox.enqueue(connection, chat("shared"))
        assert not waiting.done()
    # An id that the second transaction had drawn before it waited would be smaller than `last`.
    assert first < other < last < min(waiting.result())
    assert [key for _, key in rows()] == ["shared", "other", "shared", "b", "shared", "a"]


@pytest.mark.usefixtures("enabled")
async def test_ordered_transactions_over_many_keys_do_not_deadlock(
    aengine: AsyncEngine, rows: Rows
) -> None:
    async def enqueue(keys: list[str]) -> None:
        async with aengine.begin() as connection:
            await outbox.enqueue(connection, [chat(key) for key in keys], ordered=True)

    keys = [f"k{number}" for number in range(50)]
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for turn in range(20):
            group.create_task(enqueue(keys if turn % 2 else keys[::-1]))
    assert len(rows()) == 1000


def test_before_start_and_after_close_it_is_not_configured(engine: Engine) -> None:
    outbox.close()
    with engine.connect() as connection:
        for act in (outbox.enqueue_sync, outbox.record_sync):
            with pytest.raises(
                OutboxNotConfigured,
                match=r"call streams\.outbox\.start\(\) when the process starts",
            ):
                act(connection, chat())
        outbox.start(Settings())
        outbox.enqueue_sync(connection, chat())
        outbox.close()
        with pytest.raises(OutboxNotConfigured):
            outbox.enqueue_sync(connection, chat())


async def test_async_before_start_it_is_not_configured(aengine: AsyncEngine) -> None:
    outbox.close()
    async with aengine.connect() as connection:
        for act in (outbox.enqueue, outbox.record):
            with pytest.raises(OutboxNotConfigured):
                await act(connection, chat())


def test_start_and_close_are_safe_in_any_state(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox.close()
    outbox.close()
    outbox.start(Settings())
    outbox.start(Settings(outbox=Outbox(enabled=False)))
    with engine.connect() as connection, pytest.raises(OutboxDisabled):
        outbox.enqueue_sync(connection, chat())
    for bad in (Settings(agents=("nowhere_at_all",)), None):
        monkeypatch.setenv("STREAMS_CONFIG", "/nowhere/faust.yml")
        with pytest.raises((RegistryInvalid, SettingsInvalid)):
            outbox.start(bad)
        with engine.connect() as connection, pytest.raises(OutboxNotConfigured):
            outbox.enqueue_sync(connection, chat())
        outbox.close()
    outbox.start(Settings())
    outbox.close()
    outbox.close()


def test_the_topic_and_the_limit_are_the_configured_ones(engine: Engine, rows: Rows) -> None:
    outbox.start(
        load(environ={"STREAMS_BROKER__TOPIC_PREFIX": "test.", "STREAMS_OUTBOX__MAX_BYTES": "100"})
    )
    with engine.begin() as connection:
        outbox.enqueue_sync(connection, chat())
        with pytest.raises(
            PayloadInvalid,
            match="chat_history_persist: payload has 163 bytes, expected at most 100",
        ):
            outbox.enqueue_sync(connection, chat(message="x" * 100))
    outbox.close()
    assert rows("topic") == [("test.chat-history",)]


@pytest.mark.usefixtures("disabled")
async def test_disabled_enqueue_says_what_to_use(aengine: AsyncEngine, engine: Engine) -> None:
    async with aengine.connect() as connection:
        with pytest.raises(OutboxDisabled, match=r"outbox\.enabled is false: use outbox\.record"):
            await outbox.enqueue(connection, chat())
    with engine.connect() as plain, pytest.raises(OutboxDisabled):
        outbox.enqueue_sync(plain, chat())


@pytest.mark.usefixtures("enabled")
async def test_record_enqueues_while_enabled(
    aengine: AsyncEngine, engine: Engine, rows: Rows
) -> None:
    async with AsyncSession(aengine) as session, session.begin():
        await outbox.record(session, [chat("a"), chat("b")], ordered=True, traceparent=TRACE)
    with Session(engine) as plain, plain.begin():
        outbox.record_sync(plain, chat("c"), traceparent=TRACE)
    assert [row[1:] for row in rows("id, key, traceparent")] == [
        ("a", TRACE),
        ("b", TRACE),
        ("c", TRACE),
    ]
    assert rows("*", "chat_histories") == []


@pytest.mark.usefixtures("disabled")
async def test_record_runs_the_handler_in_the_callers_transaction_while_disabled(
    aengine: AsyncEngine, rows: Rows
) -> None:
    async with AsyncSession(aengine) as session, session.begin():
        await outbox.record(session, [chat("a", "one"), chat("b", "two"), chat("a", "three")])
        assert rows("*", "chat_histories") == []
    assert rows() == []
    written = rows("id, chat_id, message_content", "chat_histories")
    assert [row[1:] for row in written] == [("a", "one"), ("b", "two"), ("a", "three")]
    assert rows("chat_id, message_count", "agent_chats") == [("a", 2), ("b", 1)]
    async with aengine.connect() as connection:
        await outbox.record(connection, chat("gone"))
        await connection.rollback()
    assert len(rows("*", "chat_histories")) == 3


@pytest.mark.usefixtures("disabled")
def test_record_sync_runs_the_handler_in_the_callers_transaction_while_disabled(
    engine: Engine, rows: Rows
) -> None:
    with Session(engine) as session, session.begin():
        outbox.record_sync(session, chat("a"))
        assert rows("*", "chat_histories") == []
    with engine.begin() as connection:
        outbox.record_sync(connection, [chat("b"), chat("c")])
    with engine.connect() as connection:
        outbox.record_sync(connection, chat("gone"))
        connection.rollback()
    assert [row[1] for row in rows("id, chat_id", "chat_histories")] == ["a", "b", "c"]
    assert rows() == []


@pytest.mark.usefixtures("disabled")
async def test_any_driver_of_sqlalchemy_writes_directly_while_disabled(
    database: str, rows: Rows
) -> None:
    """The agent that is shipped bound what psycopg alone takes, in psycopg's own way of writing."""
    text_of = "für Ärger € \U0001f40d :colon %percent %(key)s"
    url = make_url(database)
    names = ("asyncpg", "psycopg", "psycopg2")
    for name in names[:2]:
        aengine = create_async_engine(url.set(drivername=f"postgresql+{name}"))
        async with aengine.begin() as connection:
            await outbox.record(connection, [chat(name, text_of), chat(name)], ordered=True)
        await aengine.dispose()
    for name in names[1:]:
        engine = create_engine(url.set(drivername=f"postgresql+{name}"))
        with engine.begin() as plain:
            outbox.record_sync(plain, [chat(name, text_of), chat(name)], ordered=True)
        engine.dispose()
    written = rows("outbox_id, chat_id, message_content", "chat_histories")
    assert [row[1:] for row in written] == [
        (name, text)
        for name in ("asyncpg", "psycopg", "psycopg", "psycopg2")
        for text in (text_of, "hi")
    ]
    assert len(rows("*", "agent_chats")) == len(names)


@pytest.mark.usefixtures("disabled")
async def test_ordered_transactions_take_turns_while_disabled_too(
    aengine: AsyncEngine, engine: Engine, rows: Rows, eventually: Callable[..., Any]
) -> None:
    def record_sync() -> None:
        with engine.begin() as plain:
            outbox.record_sync(plain, chat("shared", "third"), ordered=True)

    async def record() -> None:
        async with aengine.begin() as connection:
            await outbox.record(connection, chat("shared", "third"), ordered=True)

    for other in (record(), asyncio.to_thread(record_sync)):
        async with asyncio.timeout(60), asyncio.TaskGroup() as group, aengine.begin() as connection:
            await outbox.record(connection, chat("shared", "first"), ordered=True)
            waiting = group.create_task(other)
            await eventually(
                lambda: rows("pid", "pg_locks WHERE locktype = 'advisory' AND NOT granted")
            )
            await outbox.record(connection, chat("shared", "second"))
            assert not waiting.done()
    contents = [row[1] for row in rows("outbox_id, message_content", "chat_histories")]
    assert contents == ["first", "second", "third"] * 2
    many = [chat(str(number)) for number in range(outbox.ORDERED_KEYS + 1)]
    with engine.connect() as plain, pytest.raises(UsageError, match="with 1001 keys in one call"):
        outbox.record_sync(plain, many, ordered=True)


@pytest.mark.usefixtures("disabled")
async def test_what_a_handler_was_refused_does_not_show_the_message(
    aengine: AsyncEngine, engine: Engine
) -> None:
    with engine.begin() as plain:
        plain.execute(text("ALTER TABLE chat_histories RENAME TO elsewhere"))
    with engine.connect() as plain, pytest.raises(DBAPIError) as sync_refusal:
        outbox.record_sync(plain, chat(message="secret words"))
    async with aengine.connect() as connection:
        with pytest.raises(DBAPIError) as refusal:
            await outbox.record(connection, chat(message="secret words"))
    for error in (sync_refusal.value, refusal.value):
        assert "chat_histories" in str(error)
        assert "secret" not in str(error)


@event("opened", topic="cases", key="case")
@dataclass(frozen=True)
class Opened:
    case: str
    step: int


@event("closed", topic="cases", key="case")
@dataclass(frozen=True)
class Closed:
    case: str
    step: int


async def test_record_keeps_a_conversations_order_across_biz_types_while_disabled(
    database: str, engine: Engine, aengine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a worker does: where the biz_type changes within a key another batch begins."""
    seen: list[list[tuple[str, int]]] = []

    async def handler(messages: Batch[Opened | Closed], db: AsyncConnection) -> None:
        seen.append([(message.key, message.payload.step) for message in messages])

    agents = [Agent(declared(kind), handler, "tests") for kind in (Opened, Closed)]
    registry = Registry({each.event.biz_type: each for each in agents})
    monkeypatch.setattr(outbox, "configured", lambda settings: registry)
    outbox.start(load(environ={"DATABASE_URL": database, "STREAMS_OUTBOX__ENABLED": "false"}))
    events = [Opened("a", 1), Opened("b", 1), Closed("a", 2), Closed("b", 2), Opened("a", 3)]
    expected = [[("a", 1), ("b", 1)], [("a", 2), ("b", 2)], [("a", 3)]]
    async with aengine.begin() as connection:
        await outbox.record(connection, events)
    with engine.begin() as plain:
        outbox.record_sync(plain, events)
    outbox.close()
    assert seen == expected * 2


@pytest.mark.usefixtures("disabled")
async def test_record_checks_the_payload_while_disabled_too(
    aengine: AsyncEngine, engine: Engine
) -> None:
    bad = chat(message="\x00")
    async with aengine.connect() as connection:
        with pytest.raises(PayloadInvalid):
            await outbox.record(connection, bad)
    with engine.connect() as plain, pytest.raises(PayloadInvalid):
        outbox.record_sync(plain, bad)


@pytest.mark.usefixtures("disabled")
def test_ids_of_direct_writes_never_meet_ids_of_the_outbox(engine: Engine, rows: Rows) -> None:
    with engine.begin() as connection:
        outbox.record_sync(connection, [chat(), chat()])
        outbox.start(Settings())
        enqueued = outbox.enqueue_sync(connection, chat())
        outbox.start(Settings(outbox=Outbox(enabled=False)))
        outbox.record_sync(connection, chat())
    direct = [row[0] for row in rows("outbox_id", "chat_histories")]
    assert len({*direct, enqueued}) == 4
    assert max(direct) > enqueued > min(direct)


def test_a_handler_that_waits_for_something_else_cannot_run_without_a_loop(
    engine: Engine, rows: Rows
) -> None:
    async def handler(connection: AsyncConnection) -> None:
        await connection.exec_driver_sql("INSERT INTO agent_chats VALUES (1, 'x', 1, now())")
        await asyncio.sleep(0)

    with engine.connect() as connection:
        with pytest.raises(
            UsageError,
            match=r"awaits more than its connection: call outbox\.record from async code",
        ):
            run_sync(connection, handler)
        connection.rollback()
    assert rows("*", "agent_chats") == []


def test_an_error_that_a_handler_raises_reaches_the_caller(engine: Engine) -> None:
    async def handler(connection: AsyncConnection) -> None:
        await connection.exec_driver_sql("SELECT 1/0")

    with engine.connect() as connection, pytest.raises(DBAPIError, match="division by zero"):
        run_sync(connection, handler)


def test_a_handler_may_use_its_connection_in_every_usual_way_without_a_loop(
    engine: Engine, rows: Rows
) -> None:
    async def handler(connection: AsyncConnection) -> None:
        assert (await connection.execute(text("SELECT 1"))).scalar_one() == 1
        assert await connection.scalar(text("SELECT 2")) == 2
        assert (await connection.scalars(text("SELECT 3"))).all() == [3]
        assert await connection.run_sync(lambda plain: isinstance(plain, Connection))
        async with connection.begin_nested() as savepoint:
            await connection.execute(text("INSERT INTO agent_chats VALUES (1, 'gone', 1, now())"))
            await savepoint.rollback()
        async with connection.begin_nested():
            await connection.execute(text("INSERT INTO agent_chats VALUES (1, 'kept', 1, now())"))

    with engine.begin() as connection:
        run_sync(connection, handler)
    assert rows("chat_id", "agent_chats") == [("kept",)]


class Routing(Session):
    """As SQLAlchemy's own recipe has it: readers read, and whoever writes says so."""

    def get_bind(self, mapper: Any = None, *, clause: Any = None, **_: Any) -> Any:
        writes = self._flushing or isinstance(clause, Update | Delete)
        return self.writer if writes else self.reader

    writer: Engine
    reader: Engine


def test_a_session_that_chooses_among_databases_is_asked_for_a_writer(
    database: str, enabled: None
) -> None:
    writer, reader = sync_engine(database), create_engine("sqlite://")
    with Routing() as session:
        session.writer, session.reader = writer, reader
        outbox.enqueue_sync(session, chat())
        session.commit()
    writer.dispose()
    reader.dispose()
    assert written(database) == 1


def test_a_connection_that_streams_its_rows_enqueues(database: str, enabled: None) -> None:
    engine = sync_engine(database)
    with engine.connect() as connection:
        for options in ({"stream_results": True}, {"yield_per": 10}):
            outbox.enqueue_sync(connection.execution_options(**options), chat())
        connection.commit()
    engine.dispose()
    assert written(database) == 2


async def test_what_the_database_refuses_is_raised_without_the_text(
    database: str, enabled: None
) -> None:
    """The business logs what it is raised."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'no'; END$$;"
            "CREATE TRIGGER no BEFORE INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION no()"
        )
    engine = async_engine(database)
    async with engine.connect() as writing:
        for events in (chat(message="canary"), [chat(message="canary"), chat()]):
            with pytest.raises(DBAPIError) as refused:
                await outbox.enqueue(writing, events)
            await writing.rollback()
            assert "canary" not in str(refused.value)
            with pytest.raises(DBAPIError) as refused:
                await writing.run_sync(outbox.enqueue_sync, events)
            await writing.rollback()
            assert "canary" not in str(refused.value)
    await engine.dispose()


def test_two_classes_of_one_biz_type_are_refused_wherever_they_are_declared(
    enabled: None,
) -> None:
    """With a key of its own a second version went into the first one's topic, and died there."""

    @event("chat_history_persist", topic="another", key="room")
    @dataclass(frozen=True)
    class Newer:
        room: str

    known = outbox._configured()
    with pytest.raises(
        PayloadInvalid, match=r"Newer is not what its agent reads, .*: expected one"
    ):
        outbox.outbox_row(Newer("a"), known.settings, known.registry)


def written(database: str) -> int:
    """How many there are in the outbox."""
    with psycopg.connect(database) as connection:
        [(count,)] = connection.execute("SELECT count(*) FROM outbox").fetchall()
    return int(count)
