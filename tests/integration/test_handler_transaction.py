"""Whatever a handler does to its transaction, only COMMIT makes a run done.

Its own COMMIT has to be answered with COMMIT.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from streams import Batch, Reject, Retry
from streams.worker.database.connections import driver_of
from streams.worker.failure.strategy import Strategy
from streams.worker.run import persister
from tests.fixtures.workbench import Workbench, save

Messages = Batch[Any]
GOOD = [f"n{number}" for number in range(9)]


@pytest.fixture(params=["outbox", "envelope"])
def bench(request: pytest.FixtureRequest, database: str) -> Iterator[Workbench]:
    """A worker for our own messages, and one for another system's."""
    with Workbench(database, envelopes=request.param == "envelope") as workbench:
        yield workbench


@pytest.fixture
def ours(database: str) -> Iterator[Workbench]:
    """A worker for our own messages."""
    with Workbench(database) as workbench:
        yield workbench


def fates_but(bench: Workbench, bad: str, *fate: Any) -> list[tuple[Any, ...]]:
    """Every note consumed at its first attempt, but for one."""
    return [
        (note, *fate) if note == bad else (note, "consumed", 0, None) for note, *_ in bench.fates()
    ]


async def fail(db: AsyncConnection, state: str) -> None:
    await db.execute(text("SELECT fail(:state)"), {"state": state})


def names(messages: Messages) -> list[str]:
    return [message.payload.note for message in messages]


async def swallow_a_duplicate(messages: Messages, db: AsyncConnection) -> None:
    with suppress(IntegrityError):
        await save(messages, db)


async def swallow_each_duplicate(messages: Messages, db: AsyncConnection) -> None:
    for message in messages:
        with suppress(Exception):
            await save(Batch([message]), db)


async def swallow_far_below(messages: Messages, db: AsyncConnection) -> None:
    driver = await driver_of(db)
    with suppress(psycopg.Error):
        for message in messages:
            await driver.execute(
                "INSERT INTO notes VALUES (%s, %s, %s)",
                [message.outbox_id, message.payload.book, message.payload.note],
            )


@pytest.mark.parametrize(
    "handler", [swallow_a_duplicate, swallow_each_duplicate, swallow_far_below]
)
@pytest.mark.parametrize("place", [0, 4, 9])
def test_a_message_whose_error_was_swallowed_is_guilty_and_the_rest_is_persisted(
    bench: Workbench, handler: Any, place: int
) -> None:
    """The transaction was aborted, COMMIT was answered with ROLLBACK, the run was acked.

    Nothing was persisted.
    """
    bench.query("INSERT INTO notes (note) VALUES ('twice')")
    notes = [*GOOD[:place], "twice", *GOOD[place:]]
    bench.handler = handler
    outcome = bench.persist(bench.send(*notes))
    assert outcome.consumed == len(GOOD)
    assert bench.fates() == fates_but(bench, "twice", "retrying", 1, "23505")
    assert sorted(bench.saved()) == sorted([*GOOD, "twice"])
    assert bench.query("SELECT count(*) FROM notes WHERE note = 'twice' AND outbox_id IS NULL") == [
        (1,)
    ]


def test_an_error_swallowed_in_one_piece_undoes_nothing_of_the_others(bench: Workbench) -> None:
    """The ROLLBACK TO of the next piece undid the one before it.

    70 messages were consumed without an effect.
    """
    bench.query("INSERT INTO notes (note) VALUES ('n50'), ('n120'), ('n121')")
    notes = [f"n{number}" for number in range(200)]
    bench.handler = swallow_a_duplicate
    outcome = bench.run(bench.worker.persist(bench.send(*notes), Strategy.BISECT))
    assert outcome is not None
    assert outcome.consumed == 197
    assert {note for note, status, *_ in bench.fates() if status == "retrying"} == {
        "n50",
        "n120",
        "n121",
    }
    assert len(bench.saved()) == 200


def test_a_handler_that_recovers_behind_a_savepoint_of_its_own_is_right(bench: Workbench) -> None:
    bench.query("INSERT INTO notes (note) VALUES ('twice')")

    async def skip_duplicates(messages: Messages, db: AsyncConnection) -> None:
        for message in messages:
            with suppress(IntegrityError):
                async with db.begin_nested():
                    await save(Batch([message]), db)

    bench.handler = skip_duplicates
    assert bench.persist(bench.send(*GOOD, "twice")).consumed == 10
    assert {fate[1:] for fate in bench.fates()} == {("consumed", 0, None)}


async def commit(db: AsyncConnection) -> None:
    await db.commit()


async def roll_back(db: AsyncConnection) -> None:
    await db.rollback()


async def close(db: AsyncConnection) -> None:
    await db.close()


async def invalidate(db: AsyncConnection) -> None:
    await db.invalidate()


async def begin(db: AsyncConnection) -> None:
    async with db.begin():
        pass


async def commit_below(db: AsyncConnection) -> None:
    await db.run_sync(lambda connection: connection.commit())


async def invalidate_below(db: AsyncConnection) -> None:
    await db.run_sync(lambda connection: connection.invalidate())


async def commit_the_driver(db: AsyncConnection) -> None:
    await (await driver_of(db)).commit()


async def close_the_driver(db: AsyncConnection) -> None:
    await (await driver_of(db)).close()


async def roll_a_session_back(db: AsyncConnection) -> None:
    async with AsyncSession(bind=db) as session:
        await session.execute(text("SELECT 1"))
        await session.rollback()


def says(statement: str) -> Callable[[AsyncConnection], Any]:
    """A handler that sends this text."""

    async def say(db: AsyncConnection) -> None:
        await db.exec_driver_sql(statement)

    say.__name__ = statement
    return say


async def say_bytes(db: AsyncConnection) -> None:
    await (await driver_of(db)).execute(b"COMMIT")


async def say_composed(db: AsyncConnection) -> None:
    await (await driver_of(db)).execute(sql.SQL("COMM") + sql.SQL("IT"))


ENDS = [
    commit, roll_back, close, invalidate, begin, commit_below, commit_the_driver, close_the_driver,
    roll_a_session_back,
    say_bytes, say_composed, says("COMMIT"), says("commit and chain"), says(" /* done */ END;"),
    says("ROLLBACK"),
    says("abort"), says("-- so\nPREPARE  TRANSACTION 'x'"), says("SELECT 1; COMMIT; BEGIN"),
    says("SELECT 'a''b'; rollback work"), says("SET TRANSACTION READ ONLY"),
]  # fmt: skip


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_a_handler_that_ends_the_transaction_for_one_message_is_refused_and_the_rest_is_persisted(
    ours: Workbench, end: Callable[[AsyncConnection], Any]
) -> None:
    """All ten were consumed, with five rows.

    The handler committed, and the sixth message failed.
    """
    end_for_one_message(ours, end)


@pytest.mark.parametrize("end", [commit, roll_a_session_back], ids=lambda end: end.__name__)
def test_the_same_on_an_envelope_topic(
    database: str, end: Callable[[AsyncConnection], Any]
) -> None:
    with Workbench(database, envelopes=True) as bench:
        end_for_one_message(bench, end)


def end_for_one_message(bench: Workbench, end: Callable[[AsyncConnection], Any]) -> None:

    async def end_it(messages: Messages, db: AsyncConnection) -> None:
        await save(messages, db)
        if "ends" in names(messages):
            await end(db)

    bench.handler = end_it
    assert bench.persist(bench.send(*GOOD[:4], "ends", *GOOD[4:])).consumed == len(GOOD)
    assert bench.fates() == fates_but(bench, "ends", "retrying", 1, "misuse")
    assert sorted(bench.saved()) == GOOD
    table = "outbox_foreign" if bench.envelopes else "outbox_state"
    [(error,)] = bench.query(f"SELECT error FROM {table} WHERE status = 'retrying'")
    assert error.startswith("workbench.save ")


def test_a_handler_that_always_commits_commits_nothing_and_its_run_waits_until_it_is_mended(
    ours: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    async def commits(messages: Messages, db: AsyncConnection) -> None:
        await save(messages, db)
        await db.commit()

    ours.handler = commits
    run = ours.send(*GOOD)

    async def wait() -> None:
        work = await ours.until_waiting(run)
        assert ours.saved() == []
        assert ours.fates() == []
        ours.handler = save
        await work

    ours.run(wait())
    assert "workbench.save called db.commit(), which a handler may not" in caplog.text
    assert ours.saved() == GOOD
    assert {fate[1:] for fate in ours.fates()} == {("consumed", 0, None)}


def test_a_commit_that_is_refused_and_swallowed_makes_nothing_final(ours: Workbench) -> None:
    """All ten were consumed, with five rows."""

    async def commits_each(messages: Messages, db: AsyncConnection) -> None:
        for message in messages:
            await save(Batch([message]), db)
            with suppress(Exception):
                await db.commit()
            if message.payload.note == "n5":
                raise ValueError("on demand")

    ours.handler = commits_each
    ours.persist(ours.send(*GOOD))
    assert ours.fates() == fates_but(ours, "n5", "retrying", 1, "ValueError")
    assert ours.saved() == [note for note in GOOD if note != "n5"]


def test_text_that_only_speaks_of_a_commit_is_sent(ours: Workbench) -> None:
    statements = [
        "SELECT 'a; COMMIT; b'", 'SELECT 1 AS "; commit"', "SELECT 1 -- ; commit\n",
        "SELECT $a$; rollback$a$", "SELECT CASE WHEN true THEN 1 END",
        "SELECT E'it\\'s; commit'", "SELECT 1 /* ; abort */",
        "SAVEPOINT mine", "ROLLBACK TO mine", "rollback work to savepoint mine", "RELEASE mine",
    ]  # fmt: skip

    async def speaks(messages: Messages, db: AsyncConnection) -> None:
        for statement in statements:
            await db.exec_driver_sql(statement)
        await save(messages, db)

    ours.handler = speaks
    assert ours.persist(ours.send(*GOOD)).consumed == len(GOOD)


def test_a_transaction_that_was_ended_below_everything_leaves_dead_letters_and_no_silence(
    bench: Workbench,
) -> None:
    """Nobody can undo a COMMIT; what was claimed would be skipped by every later delivery."""

    async def ends(messages: Messages, db: AsyncConnection) -> None:
        pgconn = (await driver_of(db)).pgconn
        pgconn.exec_(b"COMMIT")
        pgconn.exec_(b"BEGIN")

    bench.handler = ends
    outcome = bench.persist(bench.send("n0", "n1"))
    assert outcome.consumed == 0
    assert bench.fates() == [("n0", "dead", 0, "misuse"), ("n1", "dead", 0, "misuse")]
    assert bench.query("SELECT count(*) FROM outbox_open") == [(0,)]


def test_such_a_dead_letter_holds_its_conversation_where_the_agent_says_so(database: str) -> None:
    async def ends(messages: Messages, db: AsyncConnection) -> None:
        pgconn = (await driver_of(db)).pgconn
        pgconn.exec_(b"COMMIT")
        pgconn.exec_(b"BEGIN")

    holding = Workbench(database)
    holding._fate["on_dead"] = "hold"
    with holding as bench:
        bench.handler = ends
        bench.persist(bench.send("n0", book="b"))
        bench.handler = save
        bench.persist(bench.send("n1", book="b"))
        assert bench.fates() == [("n0", "dead", 0, "misuse"), ("n1", "parked", 0, None)]


@pytest.mark.parametrize("how", ["after", "beside"])
def test_a_task_that_a_handler_leaves_behind_reaches_no_other_transaction(
    ours: Workbench, how: str
) -> None:
    left: list[asyncio.Task[Any]] = []

    async def leaves(messages: Messages, db: AsyncConnection) -> None:
        await save(messages, db)
        if "leaves" in names(messages):
            go = asyncio.Event()

            async def later() -> None:
                if how == "after":
                    await go.wait()
                await db.exec_driver_sql("SELECT pg_sleep(0.2)")
                await db.exec_driver_sql("INSERT INTO notes (note) VALUES ('too late')")

            left.append(asyncio.create_task(later()))
            if how == "after":
                asyncio.get_running_loop().call_later(0.05, go.set)
            else:
                await asyncio.sleep(0.05)

    ours.handler = leaves
    ours.persist(ours.send("n0", "leaves"))

    async def ended() -> None:
        await asyncio.wait(left, timeout=20)

    ours.run(ended())
    assert all(isinstance(task.exception(), Exception) for task in left)
    assert "too late" not in ours.saved()
    assert "n0" in ours.saved()


async def let_a_cancellation_out(db: AsyncConnection) -> None:
    task = asyncio.create_task(asyncio.sleep(100))
    task.cancel()
    await task


async def await_a_cancelled_future(db: AsyncConnection) -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


async def leave_the_process(db: AsyncConnection) -> None:
    sys.exit("on demand")


async def fail_in_a_group(db: AsyncConnection) -> None:
    async def die() -> None:
        raise GeneratorExit

    async with asyncio.TaskGroup() as group:
        group.create_task(die())


async def cancel_itself(db: AsyncConnection) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def stop_iterating(db: AsyncConnection) -> None:
    raise StopAsyncIteration


class PanicException(BaseException):
    """As extensions in Rust raise it; func_timeout and gevent have such ones too."""


async def panic(db: AsyncConnection) -> None:
    raise PanicException


async def interrupt(db: AsyncConnection) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("let_out", "code"),
    [
        (let_a_cancellation_out, "CancelledError"),
        (await_a_cancelled_future, "CancelledError"),
        (cancel_itself, "CancelledError"),
        (leave_the_process, "SystemExit"),
        (fail_in_a_group, "BaseExceptionGroup"),
        (stop_iterating, "StopAsyncIteration"),
        (panic, "PanicException"),
        (interrupt, "KeyboardInterrupt"),
    ],
)
def test_an_exit_that_is_no_error_is_charged_like_one(
    bench: Workbench, let_out: Any, code: str
) -> None:
    """A CancelledError that a handler let out stopped its partition for ever, with health 200."""

    async def lets_out(messages: Messages, db: AsyncConnection) -> None:
        await save(messages, db)
        if "bad" in names(messages):
            await let_out(db)

    bench.handler = lets_out
    bench.persist(bench.send(*GOOD[:3], "bad", *GOOD[3:]))
    assert bench.fates() == fates_but(bench, "bad", "retrying", 1, code)
    bench.wake("book of bad")
    bench.wake("book of bad")
    assert bench.fates() == fates_but(bench, "bad", "dead", 3, code)
    assert sorted(bench.saved()) == GOOD


class SaveFailed(Exception):
    """What a handler makes of an error."""


async def wrap(db: AsyncConnection, state: str) -> None:
    try:
        await fail(db, state)
    except DBAPIError as error:
        raise SaveFailed from error


async def wrap_by_context(db: AsyncConnection, state: str) -> None:
    try:
        await fail(db, state)
    except DBAPIError:
        raise SaveFailed  # noqa: B904 - as handlers do it


async def hide(db: AsyncConnection, state: str) -> None:
    try:
        await fail(db, state)
    except DBAPIError:
        raise SaveFailed from None


async def fail_as_a_group(db: AsyncConnection, state: str) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(fail(db, state))


async def reject_for_it(db: AsyncConnection, state: str) -> None:
    try:
        await fail(db, state)
    except DBAPIError as error:
        raise Reject("the row was refused") from error


async def go_on_in_vain(db: AsyncConnection, state: str) -> None:
    with suppress(DBAPIError):
        await fail(db, state)
    await db.exec_driver_sql("SELECT 1")


async def swallow(db: AsyncConnection, state: str) -> None:
    with suppress(DBAPIError):
        await fail(db, state)


# What a RAISE says is no outage unless every message meets it: here it stands for one.
WRAPS = [wrap, wrap_by_context, fail_as_a_group, go_on_in_vain, swallow]


@pytest.mark.parametrize("wraps", WRAPS)
@pytest.mark.parametrize("state", ["42501", "57P01", "40001", "55P03"])
def test_an_outage_stays_one_whatever_a_handler_makes_of_it(
    ours: Workbench, wraps: Any, state: str
) -> None:
    """A missing grant was charged to the message.

    The handler raised an error of its own about it.
    """
    broken = True

    async def wraps_it(messages: Messages, db: AsyncConnection) -> None:
        if broken:
            await wraps(db, state)
        await save(messages, db)

    ours.handler = wraps_it
    run = ours.send("n0")

    async def wait() -> None:
        nonlocal broken
        work = await ours.until_waiting(run)
        broken = False
        await work

    ours.run(wait())
    assert ours.fates() == [("n0", "consumed", 0, None)]


async def lack_a_grant(db: AsyncConnection, state: str) -> None:
    await db.exec_driver_sql("SET LOCAL ROLE pg_monitor")
    await db.exec_driver_sql("SELECT count(*) FROM notes")


async def find_it_locked(db: AsyncConnection, state: str) -> None:
    await db.exec_driver_sql("LOCK TABLE taken NOWAIT")


@pytest.mark.parametrize("wraps", [wrap, hide, reject_for_it])
@pytest.mark.parametrize("meets", [lack_a_grant, find_it_locked])
def test_an_outage_of_the_servers_own_stays_one_although_a_handler_hides_it(
    ours: Workbench, monkeypatch: pytest.MonkeyPatch, wraps: Any, meets: Any
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "fail", meets)
    ours.query("CREATE TABLE taken ()")
    broken = True

    async def wraps_it(messages: Messages, db: AsyncConnection) -> None:
        if broken:
            await wraps(db, "")
        await save(messages, db)

    ours.handler = wraps_it
    run = ours.send("n0")

    async def wait() -> None:
        nonlocal broken
        work = await ours.until_waiting(run)
        broken = False
        await work

    with psycopg.connect(ours.url) as holder:
        holder.execute("LOCK TABLE taken")
        ours.run(wait())
    assert ours.fates() == [("n0", "consumed", 0, None)]


@pytest.mark.parametrize(
    ("wraps", "code"),
    [(wrap, "22003"), (fail_as_a_group, "22003"), (go_on_in_vain, "22003"), (swallow, "22003"),
    (hide, "SaveFailed"),
     (reject_for_it, "rejected")],
)  # fmt: skip
def test_the_cause_of_a_wrapped_error_decides_about_its_message(
    ours: Workbench, wraps: Any, code: str
) -> None:
    async def wraps_it(messages: Messages, db: AsyncConnection) -> None:
        if "bad" in names(messages):
            await wraps(db, "22003")
        await save(messages, db)

    ours.handler = wraps_it
    ours.persist(ours.send("n0", "bad", "n1"))
    dead = code != "SaveFailed"  # it hides what it was
    assert ours.fates() == fates_but(ours, "bad", "dead" if dead else "retrying", 1, code)


def test_a_retry_that_a_handler_asks_for_while_it_handles_an_error_of_its_own_is_given(
    ours: Workbench,
) -> None:
    async def retries(messages: Messages, db: AsyncConnection) -> None:
        try:
            async with db.begin_nested():
                await fail(db, "55P03")
        except DBAPIError:
            raise Retry(after=7.0)  # noqa: B904 - as handlers do it

    ours.handler = retries
    ours.persist(ours.send("n0"))
    assert ours.fates() == [("n0", "retrying", 1, "retry")]


def test_memory_that_every_message_lacks_is_an_outage(bench: Workbench) -> None:
    """53200 was charged to each, and all were dead after their attempts.

    The server was to blame.
    """
    broken = True

    async def lacks(messages: Messages, db: AsyncConnection) -> None:
        if broken:
            await fail(db, "53200")
        await save(messages, db)

    bench.handler = lacks
    run = bench.send(*GOOD)

    async def wait() -> None:
        nonlocal broken
        work = await bench.until_waiting(run)
        broken = False
        await work

    bench.run(wait())
    assert {fate[1:] for fate in bench.fates()} == {("consumed", 0, None)}


def test_memory_that_one_message_lacks_is_its_own_fault(bench: Workbench) -> None:
    async def lacks(messages: Messages, db: AsyncConnection) -> None:
        if "large" in names(messages):
            await fail(db, "53200")
        await save(messages, db)

    bench.handler = lacks
    bench.persist(bench.send(*GOOD, "large"))
    assert bench.fates() == fates_but(bench, "large", "retrying", 1, "53200")


def test_a_table_that_is_dropped_charges_nobody_although_messages_worked_a_moment_ago(
    bench: Workbench,
) -> None:
    """A success within the last minute was taken for proof.

    Three of three were dead after 36 seconds.
    """
    bench.persist(bench.send("before"))
    bench.query("ALTER TABLE notes RENAME TO hidden")
    run = bench.send("n0", "n1", "n2")

    async def wait() -> None:
        work = await bench.until_waiting(run)
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert bench.fates() == [("before", "consumed", 0, None)]
        bench.query("ALTER TABLE hidden RENAME TO notes")
        await work

    bench.run(wait())
    assert {fate[1:] for fate in bench.fates()} == {("consumed", 0, None)}


def test_a_retry_meets_a_dropped_table_uncharged_and_holds_nobody_up(bench: Workbench) -> None:
    """What waits in the lane of its partition would keep others from showing that they work."""
    refused = True

    async def refuses(messages: Messages, db: AsyncConnection) -> None:
        if refused and "n0" in names(messages):
            raise ValueError("on demand")
        await save(messages, db)

    bench.handler = refuses
    bench.persist(bench.send("n0", "n1"))
    assert bench.fates() == fates_but(bench, "n0", "retrying", 1, "ValueError")
    refused = False
    bench.query("ALTER TABLE notes RENAME TO hidden")
    for _ in range(5):
        bench.wake("book of n0")
        assert bench.fates() == fates_but(bench, "n0", "retrying", 1, "42P01")
    bench.query("ALTER TABLE hidden RENAME TO notes")
    bench.wake("book of n0")
    assert bench.fates()[0][1] == "consumed"


def test_a_message_whose_own_statement_does_not_fit_is_charged_as_long_as_others_work(
    bench: Workbench,
) -> None:
    """Alone it proves nothing against the handler.

    One that worked is tried again, and leaves no trace.
    """

    async def misfits(messages: Messages, db: AsyncConnection) -> None:
        if "misfit" in names(messages):
            await db.exec_driver_sql("SELECT * FROM no_such_table")
        await save(messages, db)

    bench.handler = misfits
    bench.persist(bench.send("n0", "misfit", "n1"))
    assert bench.fates() == fates_but(bench, "misfit", "retrying", 1, "42P01")
    bench.wake("book of misfit")
    assert bench.fates() == fates_but(bench, "misfit", "retrying", 2, "42P01")
    bench.wake("book of misfit")
    assert bench.fates() == fates_but(bench, "misfit", "dead", 3, "42P01")
    assert bench.saved() == ["n0", "n1"]
    bench.persist(bench.send("misfit"))
    assert bench.fates()[-1] == ("misfit", "retrying", 1, "42P01")
    assert bench.saved() == ["n0", "n1"]


def test_a_message_alone_whose_statement_does_not_fit_waits_while_none_has_worked(
    bench: Workbench,
) -> None:
    bench.query("ALTER TABLE notes RENAME TO hidden")
    run = bench.send("n0")

    async def wait() -> None:
        work = await bench.until_waiting(run)
        bench.query("ALTER TABLE hidden RENAME TO notes")
        await work

    bench.run(wait())
    assert bench.fates() == [("n0", "consumed", 0, None)]


def test_a_message_that_a_deferred_constraint_refuses_is_found_although_every_call_succeeds(
    bench: Workbench,
) -> None:
    """COMMIT failed, each time, whole and in pieces.

    The process stopped, and so did every one after it.
    """
    bench.query("ALTER TABLE notes DROP CONSTRAINT notes_once")
    bench.query(
        "ALTER TABLE notes ADD CONSTRAINT notes_once UNIQUE (note) DEFERRABLE INITIALLY DEFERRED"
    )
    bench.query("INSERT INTO notes (note) VALUES ('twice')")
    bench.persist(bench.send(*GOOD, "twice"))
    assert bench.fates() == fates_but(bench, "twice", "retrying", 1, "23505")
    assert len(bench.saved()) == len(GOOD) + 1


def test_a_message_that_takes_its_connection_along_each_time_is_charged(
    ours: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statement that crashes its server process is an outage each time.

    It was one without end, as long as nobody counted.
    """
    monkeypatch.setattr(persister, "MOST_WAIT", 0.05)

    async def kills(messages: Messages, db: AsyncConnection) -> None:
        await save(messages, db)
        if "killer" in names(messages):
            await db.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")

    ours.handler = kills
    ours.persist(ours.send("n0", "killer", "n1"))
    assert ours.fates() == fates_but(ours, "killer", "retrying", 1, "57P01")
    assert ours.saved() == ["n0", "n1"]
