"""Handlers that are careless, clever or hostile.

None of them costs more than its own messages, nor the next transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.string import TextLoader
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from streams import Batch, Reject, Retry
from streams.worker.database.connections import driver_of
from streams.worker.failure import handler_call
from streams.worker.failure.strategy import Strategy
from tests.fixtures.workbench import Workbench, save

Messages = Batch[Any]
GOOD = [f"n{number}" for number in range(9)]


@pytest.fixture
def bench(database: str) -> Iterator[Workbench]:
    """A worker for our own messages."""
    with Workbench(database) as workbench:
        yield workbench


@pytest.fixture(params=["outbox", "envelope"])
def either(request: pytest.FixtureRequest, database: str) -> Iterator[Workbench]:
    """A worker for our own messages, and one for another system's."""
    with Workbench(database, envelopes=request.param == "envelope") as workbench:
        yield workbench


def names(messages: Messages) -> list[str]:
    return [message.payload.note for message in messages]


def fates_but(bench: Workbench, bad: str, *fate: Any) -> list[tuple[Any, ...]]:
    """Every note consumed at its first attempt, but for one."""
    return [
        (note, *fate) if note == bad else (note, "consumed", 0, None) for note, *_ in bench.fates()
    ]


# Errors that no `execute` raises.


async def copy_in(db: AsyncConnection, state: str) -> None:
    driver = await driver_of(db)
    await driver.execute(
        "CREATE TABLE IF NOT EXISTS copied (state text DEFAULT NULL CHECK (fail(state) IS NULL))"
    )
    with suppress(psycopg.Error):
        async with driver.cursor() as cursor, cursor.copy("COPY copied FROM STDIN") as copy:
            await copy.write(f"{state}\n")


async def stream_rows(db: AsyncConnection, state: str) -> None:
    with suppress(psycopg.Error):
        async for _ in (await driver_of(db)).cursor().stream("SELECT fail(%s)", [state]):
            pass


async def read_by_a_server_cursor(db: AsyncConnection, state: str) -> None:
    with suppress(psycopg.Error):
        async with (await driver_of(db)).cursor(name="mine") as cursor:
            await cursor.execute("SELECT fail(%s) FROM generate_series(1, 3)", [state])
            await cursor.fetchall()


async def stream_by_sqlalchemy(db: AsyncConnection, state: str) -> None:
    with suppress(DBAPIError):
        async with db.stream(text("SELECT fail(:state)"), {"state": state}) as rows:
            async for _ in rows:
                pass


async def use_a_pipeline(db: AsyncConnection, state: str) -> None:
    driver = await driver_of(db)
    with suppress(psycopg.Error):
        async with driver.pipeline():
            await driver.execute("SELECT 1")
            await driver.execute("SELECT fail(%s)", [state])
            await driver.execute("SELECT 2")


async def use_a_cursor_of_its_own(db: AsyncConnection, state: str) -> None:
    with suppress(psycopg.Error):
        await psycopg.AsyncCursor(await driver_of(db)).execute("SELECT fail(%s)", [state])


async def execute_many(db: AsyncConnection, state: str) -> None:
    with suppress(DBAPIError):
        await db.execute(text("SELECT fail(:state)"), [{"state": state}, {"state": state}])


WAYS = [
    copy_in, stream_rows, read_by_a_server_cursor, stream_by_sqlalchemy, use_a_pipeline,
    use_a_cursor_of_its_own,
    execute_many,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_an_outage_that_is_swallowed_is_one_whichever_way_the_statement_was_sent(
    bench: Workbench, way: Any
) -> None:
    broken = True

    async def swallows(messages: Messages, db: AsyncConnection) -> None:
        if broken:
            await way(db, "55P03")
        await save(messages, db)

    bench.handler = swallows
    run = bench.send("n0")

    async def wait() -> None:
        nonlocal broken
        work = await bench.until_waiting(run)
        broken = False
        await work

    bench.run(wait())
    assert bench.fates() == [("n0", "consumed", 0, None)]


@pytest.mark.parametrize("way", WAYS)
def test_bad_data_that_is_swallowed_is_its_messages_whichever_way_the_statement_was_sent(
    bench: Workbench, way: Any
) -> None:
    async def swallows(messages: Messages, db: AsyncConnection) -> None:
        if "bad" in names(messages):
            await way(db, "22003")
        else:
            await save(messages, db)

    bench.handler = swallows
    bench.persist(bench.send("n0", "bad", "n1"))
    assert bench.fates() == fates_but(bench, "bad", "dead", 1, "22003")
    assert bench.saved() == ["n0", "n1"]


# What is left open.


async def leave_a_pipeline(db: AsyncConnection) -> None:
    pipeline = (await driver_of(db)).pipeline()
    await pipeline.__aenter__()
    kept.append(pipeline)


async def leave_a_pipeline_with_something_in_it(db: AsyncConnection) -> None:
    driver = await driver_of(db)
    pipeline = driver.pipeline()
    await pipeline.__aenter__()
    kept.append(pipeline)
    await driver.execute("SELECT 1")


kept: list[Any] = []


async def leave_a_copy(db: AsyncConnection) -> None:
    driver = await driver_of(db)
    copying = driver.cursor().copy("COPY notes FROM STDIN")
    await copying.__aenter__()
    kept.append(copying)


async def leave_a_copy_out(db: AsyncConnection) -> None:
    driver = await driver_of(db)
    copying = driver.cursor().copy("COPY (SELECT generate_series(1, 100000)) TO STDOUT")
    await copying.__aenter__()
    kept.append(copying)


async def leave_a_stream(db: AsyncConnection) -> None:
    rows = (await driver_of(db)).cursor().stream("SELECT generate_series(1, 10)")
    await anext(rows)
    kept.append(rows)


@pytest.mark.parametrize(
    "leave",
    [
        leave_a_pipeline,
        leave_a_pipeline_with_something_in_it,
        leave_a_copy,
        leave_a_copy_out,
        leave_a_stream,
    ],
)
def test_a_connection_that_is_left_in_the_middle_of_something_costs_one_message(
    either: Workbench, leave: Any
) -> None:
    async def leaves(messages: Messages, db: AsyncConnection) -> None:
        await save(messages, db)
        if "bad" in names(messages):
            await leave(db)

    either.handler = leaves
    either.persist(either.send("n0", "bad", "n1"))
    kept.clear()
    assert either.saved() == ["n0", "n1"]
    assert either.fates()[1][:3] == ("bad", "retrying", 1)


def test_a_savepoint_that_is_left_open_undoes_nothing(bench: Workbench) -> None:
    async def leaves(messages: Messages, db: AsyncConnection) -> None:
        await db.begin_nested()
        await save(messages, db)
        if "bad" in names(messages):
            raise ValueError

    bench.handler = leaves
    bench.persist(bench.send("n0", "bad", "n1"))
    assert bench.saved() == ["n0", "n1"]
    assert bench.fates() == fates_but(bench, "bad", "retrying", 1, "ValueError")


@pytest.mark.parametrize("how", ["again", "released"])
def test_a_savepoint_of_our_name_keeps_nothing_of_a_message_that_fails(
    bench: Workbench, how: str
) -> None:
    async def takes_it(messages: Messages, db: AsyncConnection) -> None:
        await save(messages, db)
        if "bad" in names(messages):
            with suppress(DBAPIError):
                await db.exec_driver_sql(
                    "SAVEPOINT outbox_piece" if how == "again" else "RELEASE SAVEPOINT outbox_piece"
                )
            raise ValueError

    bench.handler = takes_it
    bench.persist(bench.send("n0", "bad", "n1"))
    assert bench.saved() == ["n0", "n1"]
    assert bench.fates()[1][:3] == ("bad", "retrying", 1)


def test_a_session_of_a_task_that_was_left_behind_writes_nothing(bench: Workbench) -> None:
    left: list[asyncio.Task[Any]] = []
    go = asyncio.Event()

    async def leaves(messages: Messages, db: AsyncConnection) -> None:
        await save(messages, db)
        session = AsyncSession(bind=db)
        await session.execute(text("SELECT 1"))

        async def later() -> None:
            await go.wait()
            await session.execute(text("INSERT INTO notes (note) VALUES ('too late')"))
            await session.commit()

        if "leaves" in names(messages):
            left.append(asyncio.create_task(later()))

    bench.handler = leaves
    bench.persist(bench.send("leaves"))

    async def waits(messages: Messages, db: AsyncConnection) -> None:
        go.set()
        await asyncio.wait(left, timeout=10)
        await save(messages, db)

    bench.handler = waits
    bench.persist(bench.send("n1"))
    assert "too late" not in bench.saved()
    assert bench.saved() == ["leaves", "n1"]


def test_a_handler_that_goes_on_after_its_time_has_lost_its_connection(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler_call, "GRACE", 0.2)
    release = asyncio.Event()
    kept_on: list[asyncio.Task[Any]] = []

    async def goes_on(messages: Messages, db: AsyncConnection) -> None:
        if "bad" not in names(messages):
            return await save(messages, db)
        driver = await driver_of(db)
        task = asyncio.current_task()
        assert task is not None
        kept_on.append(task)
        while not release.is_set():
            with suppress(asyncio.CancelledError):
                await release.wait()
        await driver.execute("INSERT INTO notes (note) VALUES ('too late')")
        await driver.execute("COMMIT")
        return None

    async def holds(messages: Messages, db: AsyncConnection) -> None:
        release.set()
        await asyncio.wait(kept_on, timeout=10)
        await save(messages, db)

    with Workbench(
        database, STREAMS_WORKER__HANDLER_TIMEOUT="1", STREAMS_WORKER__LOCK_TIMEOUT="0.5"
    ) as bench:
        monkeypatch.setattr(bench.worker.database, "patience", 0.5)
        bench.handler = goes_on
        bench.persist(bench.send("n0", "bad", "n1"))
        assert bench.saved() == ["n0", "n1"]
        assert bench.fates() == fates_but(bench, "bad", "retrying", 1, "timeout")
        bench.handler = holds
        bench.persist(bench.send("n2"))
        assert bench.saved() == ["n0", "n1", "n2"]


# What is left in the session.

BROKEN = (
    "CREATE SCHEMA elsewhere; CREATE ROLE nobody_{0}; GRANT SELECT, INSERT ON notes TO nobody_{0}"
)


def says(*statements: str) -> Any:
    """What a handler sends, in these words."""

    async def say(db: AsyncConnection) -> None:
        for statement in statements:
            await db.exec_driver_sql(statement)

    return say


async def row_factory(db: AsyncConnection) -> None:
    (await driver_of(db)).row_factory = dict_row


async def adapters(db: AsyncConnection) -> None:
    for kind in ("int8", "float8", "text"):
        (await driver_of(db)).adapters.register_loader(kind, TextLoader)


async def server_cursor_factory(db: AsyncConnection) -> None:
    driver: Any = await driver_of(db)
    driver.cursor_factory = psycopg.AsyncRawCursor
    driver.prepare_threshold = 0


# What one of our statements after the handler takes here, and a time in which taking a setting back
# is done on a busy machine too.
SLOW_SECONDS, LEFT_MS = 0.2, 100

LEAVES = {
    "row_factory": row_factory,
    "adapters": adapters,
    "cursor_factory": server_cursor_factory,
    "SET search_path": says("SET search_path = elsewhere, public", "SET search_path = elsewhere"),
    "SET LOCAL search_path": says("SET LOCAL search_path = elsewhere"),
    "set_config search_path": says("SELECT set_config('search_path', 'elsewhere', false)"),
    "a function": says("SELECT public.go_elsewhere()"),
    "SET ROLE": says("SET ROLE nobody_adversary"),
    "SET LOCAL ROLE": says("SET LOCAL ROLE nobody_adversary"),
    "SET SESSION AUTHORIZATION": says("SET SESSION AUTHORIZATION nobody_adversary"),
    "SET LOCAL statement_timeout": says(f"SET LOCAL statement_timeout = {LEFT_MS}"),
    "SET statement_timeout": says(f"SET statement_timeout = {LEFT_MS}"),
    "SET application_name": says("SET application_name = 'mine'"),
    "SET LOCAL application_name": says("SET LOCAL application_name = 'mine'"),
    "temp table": says("CREATE TEMP TABLE outbox_state (LIKE public.outbox_state)"),
    "temp table into": says("SELECT * INTO TEMP outbox_state FROM public.outbox_state"),
    "SET datestyle": says("SET datestyle = 'SQL, DMY'"),
    "SET client_encoding": says("SET client_encoding = 'LATIN1'"),
    "read only": says("SET default_transaction_read_only = on"),
    "serializable": says("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE"),
    "LISTEN": says("LISTEN something", "NOTIFY something"),
    "DEALLOCATE": says("DEALLOCATE ALL"),
    "DISCARD": says("DISCARD PLANS", "DISCARD TEMP", "DISCARD SEQUENCES"),
    "RESET ALL": says("RESET ALL"),
    "WITH HOLD": says("DECLARE mine CURSOR WITH HOLD FOR SELECT 1"),
    "pg_advisory_lock": says("SELECT pg_advisory_lock(77)"),
    "SET CONSTRAINTS": says("SET CONSTRAINTS ALL IMMEDIATE"),
    "LOCK TABLE": says("LOCK TABLE notes"),
    "DDL": says("ALTER TABLE notes ADD COLUMN IF NOT EXISTS extra text"),
    "replica": says("SET session_replication_role = replica"),
    "standard strings": says("SET standard_conforming_strings = off"),
}


@pytest.fixture
def elsewhere(bench: Workbench) -> Iterator[None]:
    """A schema and a role to go to."""
    bench.query("CREATE SCHEMA elsewhere")
    bench.query("CREATE ROLE nobody_adversary")
    bench.query("GRANT SELECT, INSERT ON notes TO nobody_adversary")
    bench.query(
        "CREATE FUNCTION go_elsewhere() RETURNS void LANGUAGE plpgsql AS"
        " $$BEGIN PERFORM set_config('search_path', 'elsewhere', false); END$$"
    )
    bench.query(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$BEGIN PERFORM pg_sleep({SLOW_SECONDS}); RETURN NEW; END$$"
    )
    bench.query(
        "CREATE TRIGGER slow BEFORE INSERT OR UPDATE ON outbox_state FOR EACH ROW"
        " WHEN (NEW.status = 'retrying' AND current_setting('statement_timeout')"
        f" = '{LEFT_MS}ms') EXECUTE FUNCTION slow()"
    )
    yield
    bench.query("DROP OWNED BY nobody_adversary")
    bench.query("DROP ROLE nobody_adversary")


@pytest.mark.parametrize("care", [Strategy.WHOLE, Strategy.SINGLE])
def test_a_setting_that_a_handler_leaves_reaches_neither_our_statements_nor_the_next_transaction(
    bench: Workbench, elsewhere: None, care: Strategy
) -> None:
    """SET search_path took our own statements to other tables, or to none.

    Those of every later run too.
    """
    leaves = ""

    async def leave(messages: Messages, db: AsyncConnection) -> None:
        await save(messages, db)
        if any(note.startswith("leaves") for note in names(messages)):
            await LEAVES[leaves](db)
        if any(note.startswith("bad") for note in names(messages)):
            raise ValueError

    async def work() -> None:
        for notes in (
            [f"leaves {leaves}"],
            [f"n0 {leaves}", f"leaves it {leaves}", f"bad {leaves}", f"n1 {leaves}"],
        ):
            await asyncio.wait_for(bench.worker.persist(bench.send(*notes), care), 15)
        await asyncio.wait_for(bench.worker.persist(bench.send(f"n2 {leaves}")), 15)

    bench.handler = leave
    for leaves in LEAVES:
        bench.run(work())
        assert [note for note in bench.saved() if note.endswith(f" {leaves}")] == [
            f"leaves {leaves}", f"n0 {leaves}", f"leaves it {leaves}", f"n1 {leaves}",
            f"n2 {leaves}"
        ]  # fmt: skip
        fates = {note: fate for note, *fate in bench.fates() if note.endswith(f" {leaves}")}
        assert fates.pop(f"bad {leaves}") == ["retrying", 1, "ValueError"]
        assert list(fates.values()) == [["consumed", 0, None]] * 5


@pytest.mark.parametrize("care", [Strategy.WHOLE, Strategy.BISECT, Strategy.SINGLE])
def test_a_connection_is_kept_as_long_as_no_handler_has_changed_its_session(
    bench: Workbench, care: Strategy
) -> None:
    """Each run of a time of failures opened a new one, and took the many times as long."""
    sessions = set()

    async def note_session(messages: Messages, db: AsyncConnection) -> None:
        sessions.add((await db.execute(text("SELECT pg_backend_pid()"))).scalar_one())
        await save(messages, db)
        if "bad" in names(messages):
            raise ValueError

    bench.handler = note_session
    for number in range(4):
        bench.run(
            asyncio.wait_for(bench.worker.persist(bench.send(f"n{number}", "bad", "n"), care), 15)
        )
    assert len(sessions) == 1


# Errors that are strange.


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Incomparable(Exception):
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    def __hash__(self) -> int:
        raise RuntimeError("no hash")

    def __bool__(self) -> bool:
        raise RuntimeError("no truth")


class RejectWithoutInit(Reject):
    def __init__(self) -> None:
        pass


class UnprintableReject(Reject):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def cycle() -> Exception:
    one, two = ValueError("a"), KeyError("b")
    one.__cause__, two.__cause__ = two, one
    return one


def nested(depth: int) -> Exception:
    error: Exception = ValueError("deep")
    for _ in range(depth):
        error = ExceptionGroup("one more", [error])
    return error


def wide(count: int) -> Exception:
    return ExceptionGroup("many", [ValueError(str(number)) for number in range(count)])


STRANGE: dict[str, Any] = {
    "unprintable": lambda: Unprintable(),
    "incomparable": lambda: Incomparable(),
    "a cycle": cycle,
    "nested": lambda: nested(100),
    "wide": lambda: wide(20_000),
    "huge": lambda: ValueError("x" * 10_000_000),
    "huge reject": lambda: Reject("x" * 10_000_000),
    "not UTF-8": lambda: Reject("\ud800\0", code="\ud800\0"),
    "a name with NUL": lambda: type("No\0name", (Exception,), {})(),
    "a long name": lambda: type("Long" * 5000, (Exception,), {})(),
    "reject without init": lambda: RejectWithoutInit(),
    "unprintable reject": lambda: UnprintableReject("why"),
    "a code that is no text": lambda: Reject("why", code=7),  # type: ignore[arg-type]
    "a reason that is no text": lambda: Reject(7),  # type: ignore[arg-type]
    "an id that is no number": lambda: Reject("why", outbox_id="seven"),  # type: ignore[arg-type]
    "an id that cannot be hashed": lambda: Reject("why", outbox_id=[7]),  # type: ignore[arg-type]
    "retry after nan": lambda: Retry(after=float("nan")),
    "retry after infinity": lambda: Retry(after=float("inf")),
    "retry after an age": lambda: Retry(after=1e300),
    "retry after text": lambda: Retry(after="60"),  # type: ignore[arg-type]
    "retry in the past": lambda: Retry(after=-60),
    "psycopg's without a state": lambda: psycopg.Error("on demand"),
    "psycopg's of nobody": lambda: psycopg.errors.UniqueViolation("on demand"),
    "a class": lambda: ValueError,
}


def test_a_strange_error_costs_one_message(bench: Workbench) -> None:
    """Asked for its text, its name or its id, some raise in their turn.

    The process stopped, and so did the next one.
    """

    async def raises(messages: Messages, db: AsyncConnection) -> None:
        await save(messages, db)
        for note in names(messages):
            if note.startswith("bad"):
                raise STRANGE[note[4:]]()

    bench.handler = raises
    bench.persist(bench.send("n0", "n1", *[f"bad {strange}" for strange in STRANGE], "n2"))
    assert bench.saved() == ["n0", "n1", "n2"]
    fates = [fate for fate in bench.fates() if fate[0].startswith("bad")]
    assert {attempts for _, _, attempts, _ in fates} == {1}
    assert {status for _, status, _, _ in fates} == {"retrying", "dead"}
    unscheduled = (
        "SELECT count(*) FROM outbox_state WHERE status = 'retrying' AND next_retry_at IS NULL"
    )
    assert bench.query(unscheduled) == [(0,)]


@pytest.mark.parametrize("error", [SystemExit, asyncio.CancelledError, KeyError])
def test_an_error_before_there_is_something_to_await_costs_one_message(
    bench: Workbench, error: Any
) -> None:
    def handle(messages: Messages, db: AsyncConnection) -> Any:
        if "bad" in names(messages):
            raise error
        return save(messages, db)

    bench.handler = handle
    bench.persist(bench.send("n0", "bad", "n1"))
    assert bench.saved() == ["n0", "n1"]


# The database's own ways.


def test_a_row_that_row_level_security_refuses_costs_one_message(bench: Workbench) -> None:
    """Its SQLSTATE is that of a missing grant."""
    bench.query("CREATE ROLE rls_adversary")
    bench.query("GRANT ALL ON notes TO rls_adversary")
    bench.query("ALTER TABLE notes ENABLE ROW LEVEL SECURITY")
    bench.query("CREATE POLICY good ON notes WITH CHECK (note <> 'bad')")

    async def saves(messages: Messages, db: AsyncConnection) -> None:
        await db.exec_driver_sql("SET LOCAL row_security = on")
        await db.exec_driver_sql("SET LOCAL ROLE rls_adversary")
        await save(messages, db)
        await db.exec_driver_sql("RESET ROLE")

    bench.handler = saves
    try:
        bench.persist(bench.send("n0", "bad", "n1"), 20)
        assert bench.saved() == ["n0", "n1"]
        assert bench.fates()[1][1] == "retrying"
    finally:
        bench.query("DROP OWNED BY rls_adversary CASCADE")
        bench.query("DROP ROLE rls_adversary")


STATES = ["55000", "55P04", "0L000", "25000", "3B001", "XX000", "P0001", "2D000", "40002"]
# Those of outages, which a trigger or a function of somebody's own may say as well.
STATES += ["40001", "42501", "55P03", "53400", "57P01", "58030", "08006"]


def test_a_state_that_one_message_alone_meets_costs_one_message(either: Workbench) -> None:
    """One message of a trigger that raises 55000 stopped its partition for ever."""

    async def fails(messages: Messages, db: AsyncConnection) -> None:
        await save(messages, db)
        for note in names(messages):
            if note in STATES:
                await db.execute(text("SELECT fail(:state)"), {"state": note})

    either.handler = fails
    either.persist(either.send("n0", *STATES, "n1"), 30)
    assert either.saved() == ["n0", "n1"]
    assert [fate for fate in either.fates() if fate[0] in STATES] == [
        (one, "retrying", 1, one) for one in STATES
    ]


async def use_a_table_of_the_transaction(db: AsyncConnection) -> None:
    await db.exec_driver_sql("CREATE TEMP TABLE staging (note text) ON COMMIT DROP")
    await db.exec_driver_sql("INSERT INTO staging VALUES ('x')")


async def use_a_table_of_the_session(db: AsyncConnection) -> None:
    await db.exec_driver_sql("SELECT 1 AS one INTO TEMP staging")


async def use_a_table_that_a_block_makes(db: AsyncConnection) -> None:
    await db.exec_driver_sql("DO $$BEGIN CREATE TEMP TABLE staging () ON COMMIT DROP; END$$")


async def leave_a_cursor_open(db: AsyncConnection) -> None:
    await db.exec_driver_sql("CREATE TEMP TABLE staging () ON COMMIT DROP")
    await db.exec_driver_sql("DECLARE mine CURSOR FOR SELECT * FROM staging")
    await db.exec_driver_sql("FETCH 1 FROM mine")


@pytest.mark.parametrize("care", [Strategy.WHOLE, Strategy.BISECT, Strategy.SINGLE])
@pytest.mark.parametrize(
    "leaves",
    [
        use_a_table_of_the_transaction,
        use_a_table_of_the_session,
        use_a_table_that_a_block_makes,
        leave_a_cursor_open,
    ],
)
def test_what_one_call_leaves_in_the_transaction_is_not_in_the_way_of_the_next_one(
    bench: Workbench, leaves: Any, care: Strategy
) -> None:
    """Once one message had failed, all behind the first piece met a table that was there."""

    async def uses(messages: Messages, db: AsyncConnection) -> None:
        await leaves(db)
        await save(messages, db)
        if "bad" in names(messages):
            raise ValueError

    bench.handler = uses
    run = bench.send(*GOOD[:4], "bad", *GOOD[4:])
    bench.run(asyncio.wait_for(bench.worker.persist(run, care), 20))
    assert bench.fates() == fates_but(bench, "bad", "retrying", 1, "ValueError")


@pytest.mark.parametrize(
    "how", ["SET LOCAL app.person = '7'", "SELECT set_config('app.person', '7', true)"]
)
def test_a_setting_of_its_own_is_for_one_call(bench: Workbench, how: str) -> None:
    """Rows of the next call were stamped with the person of the one before."""
    seen = []

    async def stamps(messages: Messages, db: AsyncConnection) -> None:
        who = await db.execute(text("SELECT current_setting('app.person', true)"))
        commits = await db.execute(text("SELECT current_setting('synchronous_commit')"))
        seen.append((who.scalar_one() or "", commits.scalar_one()))
        if "n0" in names(messages):
            await db.exec_driver_sql(how)
            await db.exec_driver_sql("SET LOCAL synchronous_commit = off")
        await save(messages, db)

    bench.handler = stamps
    bench.run(asyncio.wait_for(bench.worker.persist(bench.send("n0", "n1"), Strategy.SINGLE), 20))
    assert seen == [("", "on")] * 2
    assert bench.saved() == ["n0", "n1"]


@pytest.mark.parametrize("care", [Strategy.WHOLE, Strategy.SINGLE])
def test_a_run_is_not_done_before_its_commit_lasts_whatever_a_handler_sets(
    bench: Workbench, care: Strategy
) -> None:
    bench.query(
        "CREATE TABLE waited (synchronous text);"
        "CREATE FUNCTION note_wait() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN"
        " INSERT INTO waited VALUES (current_setting('synchronous_commit')); RETURN NULL; END$$;"
        "CREATE CONSTRAINT TRIGGER note_wait AFTER INSERT ON notes DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION note_wait()"
    )

    async def hurries(messages: Messages, db: AsyncConnection) -> None:
        await db.exec_driver_sql("SET LOCAL synchronous_commit = off")
        await save(messages, db)

    bench.handler = hurries
    bench.run(asyncio.wait_for(bench.worker.persist(bench.send("n0", "n1"), care), 20))
    assert set(bench.query("SELECT synchronous FROM waited")) == {("on",)}


def test_a_block_that_would_keep_our_writes_out_is_refused(bench: Workbench) -> None:
    async def keeps_out(messages: Messages, db: AsyncConnection) -> None:
        await save(messages, db)
        if "bad" in names(messages):
            await db.exec_driver_sql("DO $$BEGIN SET LOCAL transaction_read_only = on; END$$")

    bench.handler = keeps_out
    bench.persist(bench.send("n0", "bad", "n1"), 20)
    assert bench.fates() == fates_but(bench, "bad", "retrying", 1, "misuse")


def test_a_trigger_that_drops_rows_misleads_nobody(bench: Workbench) -> None:
    bench.query(
        "CREATE FUNCTION drop_odd() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN"
        " IF NEW.note LIKE '%3' THEN RETURN NULL; END IF;"
        " IF NEW.note = 'n17' THEN RAISE EXCEPTION 'no'; END IF; RETURN NEW; END$$"
    )
    bench.query(
        "CREATE TRIGGER odd BEFORE INSERT ON notes FOR EACH ROW EXECUTE FUNCTION drop_odd()"
    )
    bench.persist(bench.send(*[f"n{n}" for n in range(40)]))
    assert bench.fates() == fates_but(bench, "n17", "retrying", 1, "P0001")
    assert len(bench.saved()) == 35


@pytest.mark.parametrize("statement", ["DO $$BEGIN COMMIT; END$$", "CALL commits()"])
def test_a_procedure_that_commits_costs_one_message(bench: Workbench, statement: str) -> None:
    bench.query("CREATE PROCEDURE commits() LANGUAGE plpgsql AS $$BEGIN COMMIT; END$$")

    async def calls(messages: Messages, db: AsyncConnection) -> None:
        await save(messages, db)
        if "bad" in names(messages):
            await db.exec_driver_sql(statement)

    bench.handler = calls
    bench.persist(bench.send("n0", "bad", "n1"))
    assert bench.saved() == ["n0", "n1"]
    assert bench.fates() == fates_but(bench, "bad", "retrying", 1, "2D000")


def test_a_session_on_the_connection_saves_as_its_owner_expects(either: Workbench) -> None:
    async def saves(messages: Messages, db: AsyncConnection) -> None:
        async with AsyncSession(bind=db) as session:
            for message in messages:
                try:
                    async with session.begin_nested():
                        await session.execute(
                            text("INSERT INTO notes VALUES (:i, 'b', :n)"),
                            {"i": message.outbox_id, "n": message.payload.note},
                        )
                        if message.payload.note == "bad":
                            raise KeyError
                except KeyError:
                    pass
            await session.commit()

    either.handler = saves
    either.persist(either.send("n0", "bad", "n1"))
    assert either.saved() == ["n0", "n1"]
    assert {fate[1] for fate in either.fates()} <= {"consumed"}
