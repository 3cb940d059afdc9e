"""Bulk acts: a preview binds, few are tried first, it stops by itself.

Nothing is sent twice, whoever dies.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, NullPool
from sqlalchemy.exc import DBAPIError

from streams import operate
from streams.database import sync_engine, transacted
from streams.errors import UsageError
from streams.operate import operations
from streams.operate.operations import NoSuchOperation, Operation, PreviewChanged
from streams.operate.replay import Operator
from streams.operate.selection import Choice, NotDead
from streams.registry import Registry
from streams.web import operating as web_operations
from streams.web.pool import ACT, Pool
from tests.conftest import Eventually

ANN, BOB = Operator("ann", "mended"), Operator("bob", "mended too")
CODE = Choice(error="23503")


@pytest.fixture
def business(database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def desk(database: str) -> Iterator[Connection]:
    with sync_engine(database, poolclass=NullPool).connect() as connection:
        yield connection


def die(business: psycopg.Connection[Any], count: int, code: str = "23503") -> list[int]:
    """So many messages that are dead, of ten conversations."""
    rows = business.execute(
        "WITH new AS (INSERT INTO outbox (biz_type, topic, key, payload)"
        " SELECT 'chat', 't', 'k' || n %% 10, '{}' FROM generate_series(1, %s) AS n"
        " RETURNING id), fates AS (INSERT INTO outbox_state (outbox_id, status, attempts,"
        " error_code, error, applied) SELECT id, 'dead', 3, %s, 'no such row', NULL FROM new)"
        " SELECT id FROM new ORDER BY id",
        (count, code),
    )
    return [row[0] for row in rows]


def fate(business: psycopg.Connection[Any], status: str, attempts: int = 0) -> int:
    """Let workers decide whatever is being replayed."""
    cursor = business.execute(
        "UPDATE outbox_state SET status = %s, attempts = %s, topic = CASE WHEN %s = 'retrying' THEN"
        " 't' END, updated_at = now() WHERE status = 'replaying'",
        (status, attempts, status),
    )
    return cursor.rowcount


def sent(business: psycopg.Connection[Any]) -> list[int]:
    return [
        row[0]
        for row in business.execute(
            "SELECT resend_of FROM outbox WHERE resend_of IS NOT NULL ORDER BY id"
        )
    ]


def rest(business: psycopg.Connection[Any]) -> None:
    """Let a minute pass since anything was worked."""
    business.execute("UPDATE outbox_operation_items SET at = at - interval '1 minute'")


def begun(
    desk: Connection, choice: Choice = CODE, act: str = "replay", **options: Any
) -> Operation:
    previewed = operations.preview(desk, act, choice, ANN, **options)
    return operations.submit(desk, previewed.id, ANN)


def test_a_preview_binds(business: psycopg.Connection[Any], desk: Connection) -> None:
    ids = die(business, 12)
    waiting = die(business, 1, "later")
    die(business, 1, "P0001")
    previewed = operations.preview(desk, "replay", CODE, ANN)
    assert (previewed.state, previewed.planned, previewed.late) == ("preview", 12, 12)
    # What dies meanwhile is not touched: a new message, and an older one that dies of the same
    # cause only now.
    die(business, 5)
    business.execute("UPDATE outbox_state SET status = 'consumed' WHERE outbox_id = %s", waiting)
    business.execute(
        "UPDATE outbox_state SET status = 'dead', error_code = '23503' WHERE outbox_id = %s",
        waiting,
    )
    running = operations.submit(desk, previewed.id, ANN)
    assert running.state == "running"
    again = operations.submit(desk, previewed.id, Operator("bob"))
    assert (again.who, again.submitted_at) == ("ann", running.submitted_at)
    while operations.work(desk, running.id) is not None:
        fate(business, "consumed")
    ended = operations.operation(desk, running.id)
    assert (ended.state, ended.done, ended.failed, ended.left_alone) == ("done", 12, 0, 0)
    assert sorted(sent(business)) == ids
    acts = business.execute(
        "SELECT who, what->>'operation', (what->>'count')::int FROM outbox_actions ORDER BY id"
    )
    assert acts.fetchall() == [
        ("ann", str(ended.id), 1),
        ("ann", str(ended.id), 10),
        ("ann", str(ended.id), 1),
    ]


def test_what_was_dying_when_it_was_previewed_is_no_part_of_it(
    database: str, business: psycopg.Connection[Any], desk: Connection
) -> None:
    with psycopg.connect(database) as slow:
        # It has its place in the order of dying, and is not seen before it commits.
        die(slow, 3)
        ids = die(business, 5)
        previewed = operations.preview(desk, "replay", CODE, ANN)
        assert previewed.planned == 5
        slow.commit()
    running = operations.submit(desk, previewed.id, ANN)
    assert running.state == "running"
    while operations.work(desk, running.id) is not None:
        fate(business, "consumed")
    assert sorted(sent(business)) == ids
    assert operations.preview(desk, "replay", CODE, ANN).planned == 3


def test_two_operators_at_once_send_no_message_twice(
    business: psycopg.Connection[Any], desk: Connection
) -> None:
    ids = die(business, 12)
    previewed = operations.preview(desk, "replay", CODE, ANN)
    another = operations.preview(desk, "replay", CODE, BOB)
    with desk.engine.connect() as second, ThreadPoolExecutor(2) as both:

        def at_once(act: Callable[..., Any], *given: tuple[Any, ...]) -> list[Any]:
            running = [
                both.submit(act, connection, *values)
                for connection, values in zip((desk, second), given, strict=True)
            ]
            return [each.result() for each in running]

        # Of one preview, whoever comes first; the other one is told who that was.
        submitted = at_once(operations.submit, (previewed.id, ANN), (previewed.id, BOB))
        assert len({each.who for each in submitted}) == 1
        # Of two previews of the same messages, each message is sent by one of them.
        operations.submit(desk, another.id, BOB)
        for _ in range(40):
            at_once(operations.work_all, (), ())
            fate(business, "consumed")
            ended = [operations.operation(desk, each.id) for each in (previewed, another)]
            if {each.state for each in ended} == {"done"}:
                break
    assert {each.state for each in ended} == {"done"}
    assert sum(each.done for each in ended) == sum(each.gone for each in ended) == 12
    assert sorted(sent(business)) == ids


def test_a_preview_that_fits_no_more_is_refused_and_an_old_one_is_gone(
    business: psycopg.Connection[Any], desk: Connection
) -> None:
    ids = die(business, 3)
    previewed = operations.preview(desk, "discard", CODE, ANN)
    business.execute("UPDATE outbox_state SET status = 'discarded' WHERE outbox_id = %s", [ids[1]])
    with pytest.raises(
        PreviewChanged, match=r"preview \d+ is of 3 messages, and 2 of them are dead as they were"
    ):
        operations.submit(desk, previewed.id, ANN)
    # One that is dead again is another death.
    previewed = operations.preview(desk, "replay", CODE, ANN)
    business.execute("UPDATE outbox_state SET status = 'replaying' WHERE outbox_id = %s", [ids[0]])
    fate(business, "dead")
    with pytest.raises(PreviewChanged):
        operations.submit(desk, previewed.id, ANN)
    business.execute("UPDATE outbox_operations SET created_at = now() - interval '61 minutes'")
    with pytest.raises(NoSuchOperation):
        operations.submit(desk, previewed.id, ANN)
    assert sent(business) == []
    with pytest.raises(UsageError, match="no dead message fits"):
        operations.preview(desk, "replay", Choice(error="never"), ANN)
    with pytest.raises(NotDead):
        operations.preview(desk, "replay", Choice(ids=(ids[1],)), ANN)


@pytest.mark.parametrize(("status", "attempts"), [("dead", 0), ("retrying", 1)])
def test_messages_that_fail_again_stop_the_operation(
    business: psycopg.Connection[Any], desk: Connection, status: str, attempts: int
) -> None:
    die(business, 5000)
    operation = begun(desk)
    pause: float | None = 0.0
    for step in range(1, 6):
        pause = operations.work(desk, operation.id)
        if pause is None:
            break
        fate(business, "consumed" if step < 3 else status, attempts)
    stopped = operations.operation(desk, operation.id)
    assert len(sent(business)) == 100
    assert (stopped.state, stopped.reason, stopped.failed) == (
        "stopped",
        "89 of 89 messages of this step failed again",
        89,
    )
    # Mended: it goes on carefully, and what failed again is not its business any more.
    operations.resume(desk, operation.id, ANN)
    assert operations.work(desk, operation.id) is not None
    assert len(sent(business)) == 101
    assert operations.stop(desk, operation.id, Operator("bob")).reason == "stopped by bob"
    assert operations.work(desk, operation.id) is None


def test_a_first_step_of_which_nothing_could_be_tried_is_no_reason_to_try_more(
    business: psycopg.Connection[Any], desk: Connection
) -> None:
    ids = die(business, 30)
    # Those of the first conversation were replayed three times already: they are left alone.
    circled = ids[::10]
    business.execute("UPDATE outbox_state SET replays = 3 WHERE outbox_id = ANY(%s)", [circled])
    operation = begun(desk)
    pauses = []
    while not sent(business):
        pauses.append(operations.work(desk, operation.id))
    assert pauses == [0.0, 0.0, 0.0, operations.POLL_SECONDS]
    assert len(sent(business)) == 1
    fate(business, "dead")
    assert operations.work(desk, operation.id) is None
    stopped = operations.operation(desk, operation.id)
    assert (stopped.reason, stopped.circling, stopped.done) == (
        "1 of 1 messages of this step failed again",
        3,
        1,
    )


def test_whoever_takes_it_up_goes_on_and_nothing_is_sent_twice(
    business: psycopg.Connection[Any],
    desk: Connection,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = die(business, 15)
    operation = begun(desk)

    class Killed(Exception):
        pass

    send: Callable[..., int] = operations._send

    def killed_before(*_: Any) -> None:
        raise Killed

    def killed_after(*arguments: Any) -> None:
        send(*arguments)
        raise Killed

    with (
        sync_engine(database, poolclass=NullPool).connect() as other,
        operations.held(desk, operation.id) as mine,
    ):
        assert mine
        with operations.held(other, operation.id) as theirs:
            assert not theirs
        for dies in (killed_before, killed_after):
            monkeypatch.setattr(operations, "_send", dies)
            with pytest.raises(Killed):
                operations.work(desk, operation.id)
    monkeypatch.setattr(operations, "_send", send)
    with sync_engine(database, poolclass=NullPool).connect() as other:
        assert len(sent(business)) == 1
        while operations.operation(other, operation.id).state == "running":
            operations.work_all(other)
            fate(business, "consumed")
    assert sorted(sent(business)) == ids
    assert [item.outcome for item in operations.items(desk, operation.id)] == ["done"] * 15


def test_a_discard_is_done_at_once_and_says_what_was_gone(
    business: psycopg.Connection[Any], desk: Connection
) -> None:
    ids = die(business, 4)
    operation = begun(desk, act="discard")
    business.execute("UPDATE outbox_state SET status = 'replaying' WHERE outbox_id = %s", [ids[0]])
    while operations.work(desk, operation.id) is not None:
        pass
    ended = operations.operation(desk, operation.id)
    assert (ended.state, ended.done, ended.gone) == ("done", 3, 1)
    assert [each.id for each in operations.operations(desk)] == [operation.id]


def test_what_was_erased_or_lost_its_row_is_left_alone_and_holds_up_nothing(
    business: psycopg.Connection[Any], desk: Connection
) -> None:
    ids, others = die(business, 5), die(business, 3, "later")
    business.execute("""UPDATE outbox SET payload = '{"$erased": true}' WHERE id = %s""", [ids[1]])
    first, second = begun(desk), begun(desk, Choice(error="later"))
    business.execute("DELETE FROM outbox WHERE id = %s", [ids[3]])
    for _ in range(8):
        operations.work_all(desk)
        fate(business, "consumed")
    ended = [operations.operation(desk, one.id) for one in (first, second)]
    assert [(one.state, one.done, one.gone) for one in ended] == [("done", 3, 2), ("done", 3, 0)]
    assert sorted(sent(business)) == sorted({*ids, *others} - {ids[1], ids[3]})


def test_what_stands_in_line_behind_another_message_holds_up_no_operation(
    business: psycopg.Connection[Any], desk: Connection
) -> None:
    """The first step is of one message, and an earlier one of its conversation is dead and holds
    it, for another cause."""
    ids = die(business, 5)
    operation = begun(desk)
    operations.work(desk, operation.id)
    assert fate(business, "parked") == 1
    for _ in range(3):
        assert operations.work(desk, operation.id) == operations.POLL_SECONDS
    assert sent(business) == ids[:1]
    rest(business)
    while operations.work(desk, operation.id) is not None:
        fate(business, "consumed")
    ended = operations.operation(desk, operation.id)
    assert (ended.state, ended.done, ended.failed, ended.left_alone) == ("done", 5, 0, 0)
    outcomes = [item.outcome for item in operations.items(desk, operation.id)]
    assert outcomes == ["queued", *["done"] * 4]


def test_whoever_is_paused_with_an_operation_gives_it_back_with_its_session(
    desk: Connection,
) -> None:
    """As after a SIGSTOP: the server ends a session that says nothing for a minute."""

    def limit() -> str:
        with desk.begin():
            return str(desk.exec_driver_sql("SHOW idle_session_timeout").scalar_one())

    assert limit() == "0"
    with operations.held(desk, 1) as taken:
        assert (taken, limit()) == (True, "1min")
    assert limit() == "0"


def test_an_operation_that_cannot_be_worked_says_why_and_holds_up_no_other(
    business: psycopg.Connection[Any], desk: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    die(business, 1), die(business, 1, "later")
    first, second = begun(desk), begun(desk, Choice(error="later"))
    send: Callable[..., int] = operations._send

    def refuse(connection: Connection, now: Operation, rows: Any) -> int:
        if now.id == first.id:
            raise UsageError("it cannot be done")
        return send(connection, now, rows)

    monkeypatch.setattr(operations, "_send", refuse)
    for _ in range(3):
        operations.work_all(desk)
        fate(business, "consumed")
    stopped, done = (operations.operation(desk, one.id) for one in (first, second))
    assert (stopped.state, stopped.reason, done.state) == ("stopped", "it cannot be done", "done")


def test_what_the_database_refuses_of_one_is_its_reason_and_holds_up_no_other(
    business: psycopg.Connection[Any], desk: Connection
) -> None:
    """A constraint of somebody's own, on what is sent again."""
    die(business, 3), die(business, 1, "later")
    first, second = begun(desk), begun(desk, Choice(error="later"))
    business.execute(
        "ALTER TABLE outbox ADD CONSTRAINT once CHECK (resend_of IS NULL OR resend_of <> 2)"
    )
    for _ in range(4):
        operations.work_all(desk)
        fate(business, "consumed")
    stopped, done = (operations.operation(desk, one.id) for one in (first, second))
    assert (stopped.state, done.state) == ("stopped", "done")
    assert stopped.reason is not None
    assert stopped.reason.startswith(
        "PostgreSQL refuses it: CheckViolation (SQLSTATE 23514), table outbox"
    )
    assert stopped.reason.endswith(", constraint once")
    business.execute("ALTER TABLE outbox DROP CONSTRAINT once")
    operations.resume(desk, first.id, ANN)
    for _ in range(4):
        operations.work_all(desk)
        fate(business, "consumed")
    ended = operations.operation(desk, first.id)
    assert (ended.state, ended.done) == ("done", 3)


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        ("PERFORM FROM gone", "UndefinedTable (SQLSTATE 42P01)"),
        ("PERFORM pg_sleep(30)", "QueryCanceled (SQLSTATE 57014)"),
    ],
)
def test_whatever_is_met_again_stops_one_operation_and_holds_up_no_other(
    business: psycopg.Connection[Any], desk: Connection, does: str, reason: str
) -> None:
    """A trigger of somebody's own that lacks a table, or takes too long."""
    business.execute(
        f"CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {does}; RETURN NEW;"
        " END$$; CREATE TRIGGER slow BEFORE INSERT ON outbox FOR EACH ROW"
        " WHEN (NEW.resend_of IS NOT NULL) EXECUTE FUNCTION slow()".encode()
    )
    die(business, 2), die(business, 1, "later")
    first, second = begun(desk), begun(desk, Choice(error="later"), "discard")
    desk.exec_driver_sql("SET statement_timeout = '300ms'")
    desk.commit()
    for _ in range(3):
        operations.work_all(desk)
    stopped, done = (operations.operation(desk, one.id) for one in (first, second))
    assert (stopped.state, done.state) == ("stopped", "done")
    assert stopped.reason == f"PostgreSQL refuses it: {reason}"


def test_what_this_role_may_not_work_is_left_to_who_may_and_holds_up_no_other(
    business: psycopg.Connection[Any], desk: Connection, name: str
) -> None:
    """Workers look for operations too, and some may insert nothing into the outbox."""
    die(business, 2), die(business, 1, "later")
    first, second = begun(desk), begun(desk, Choice(error="later"), "discard")
    business.execute(
        f"CREATE ROLE {name}_worker; GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}_worker;"
        f" GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {name}_worker;"
        f" REVOKE INSERT ON outbox FROM {name}_worker".encode()
    )
    try:
        desk.exec_driver_sql(f"SET ROLE {name}_worker")
        desk.commit()
        for _ in range(2):
            with pytest.raises(DBAPIError, match="permission denied for table outbox"):
                operations.work_all(desk)
        desk.exec_driver_sql("RESET ROLE")
        desk.commit()
        states = [operations.operation(desk, one.id).state for one in (first, second)]
        assert states == ["running", "done"]
        operations.work_all(desk)
        assert len(sent(business)) > 0
    finally:
        business.execute(f"DROP OWNED BY {name}_worker; DROP ROLE {name}_worker".encode())


def test_what_is_in_the_way_stops_no_operation(
    business: psycopg.Connection[Any], desk: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transacted, "PAUSES", (0.01,))
    die(business, 1)
    operation = begun(desk)
    with business.transaction():
        business.execute("LOCK TABLE outbox_state")
        desk.exec_driver_sql("SET lock_timeout = '10ms'")
        desk.commit()
        assert operations.work_all(desk) > 0
    assert operations.operation(desk, operation.id).state == "running"


def test_a_database_that_is_away_stops_no_operation(
    business: psycopg.Connection[Any], desk: Connection
) -> None:
    die(business, 1)
    operation = begun(desk)
    pid = desk.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    desk.commit()
    business.execute("SELECT pg_terminate_backend(%s)", [pid])
    with pytest.raises(DBAPIError):
        operations.work_all(desk)
    assert operations.operation(desk, operation.id).state == "running"


@pytest.mark.parametrize("act", ["replay", "discard"])
async def test_an_act_that_meets_a_worker_crosswise_is_begun_again(
    database: str,
    business: psycopg.Connection[Any],
    desk: Connection,
    eventually: Eventually,
    act: str,
) -> None:
    first, *_, last = die(business, 3)
    locked = "SELECT FROM outbox_state WHERE outbox_id = %s FOR UPDATE"
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname ="
    waits += " current_database()"

    def acted() -> int:
        ids = operate.plan(desk, CODE)
        steps = (
            operate.replay(desk, ids, ANN, CODE)
            if act == "replay"
            else operate.discard(desk, ids, ANN, CODE)
        )
        return sum(step.done for step in steps)

    with psycopg.connect(database) as worker, ThreadPoolExecutor(1) as pool:
        worker.execute("SET LOCAL deadlock_timeout = '1min'")  # the other one is to give way
        worker.execute(locked, [last])
        done = pool.submit(acted)
        await eventually(lambda: business.execute(waits.encode()).fetchone() != (0,))
        worker.execute(locked, [first])
        worker.commit()
        assert done.result(30) == 3
    acts = business.execute("SELECT act FROM outbox_actions").fetchall()
    assert acts == [(act,)]


async def test_one_whose_process_was_killed_is_taken_up_by_whoever_lives(
    database: str, business: psycopg.Connection[Any], desk: Connection, eventually: Eventually
) -> None:
    """Nobody tells those who live: they look, and leave no connection behind."""
    pool = Pool(lambda: database, "acts", ACT, 2)
    living = web_operations.Operations(pool, look_seconds=0.1)
    living.watch()
    try:
        ids = die(business, 1)
        operation = begun(desk)

        def ended() -> bool:
            fate(business, "consumed")
            return operations.operation(desk, operation.id).state == "done"

        await eventually(ended)
        assert sorted(sent(business)) == ids
        acting = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%% acts'"
        await eventually(lambda: business.execute(acting.encode()).fetchone() == (0,), every=0.01)
    finally:
        living.close()
        pool.close()


@pytest.mark.parametrize("rate", [None, 2.0])
def test_one_that_was_stopped_in_the_middle_of_a_step_goes_on_with_what_is_left(
    business: psycopg.Connection[Any],
    desk: Connection,
    monkeypatch: pytest.MonkeyPatch,
    rate: float | None,
) -> None:
    monkeypatch.setattr(operations, "PORTION_SECONDS", 1.0)
    ids = die(business, 15)
    operation = begun(desk, rate=rate)
    operations.work(desk, operation.id)
    fate(business, "consumed")
    rest(business)
    if rate is None:
        # The process dies between the step and what it sends.
        monkeypatch.setattr(operations, "_send", lambda *_: 0)
    assert operations.work(desk, operation.id) is not None
    monkeypatch.undo()
    assert len(sent(business)) == (1 if rate is None else 3)
    fate(business, "consumed")
    operations.stop(desk, operation.id, ANN)
    operations.resume(desk, operation.id, BOB)
    while operations.work(desk, operation.id) is not None:
        fate(business, "consumed")
        rest(business)
    ended = operations.operation(desk, operation.id)
    assert (ended.state, ended.done) == ("done", 15)
    assert sorted(sent(business)) == ids
    acts = business.execute(
        "SELECT act, who, why, (what->>'operation')::int FROM outbox_actions"
        " WHERE act IN ('stop', 'resume') ORDER BY id"
    )
    assert acts.fetchall() == [
        ("stop", "ann", "mended", operation.id),
        ("resume", "bob", "mended too", operation.id),
    ]


@pytest.mark.parametrize("act", ["replay", "discard"])
def test_whoever_stops_it_is_heard_before_the_next_messages(
    business: psycopg.Connection[Any],
    desk: Connection,
    monkeypatch: pytest.MonkeyPatch,
    act: str,
) -> None:
    die(business, 12)
    operation = begun(desk, act=act, rate=1.0, at_once=True)
    slept: list[float] = []
    with desk.engine.connect() as other:

        def stopped_meanwhile(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == 2:
                operations.stop(other, operation.id, BOB)

        monkeypatch.setattr(time, "sleep", stopped_meanwhile)
        operations.work(desk, operation.id)
    assert operations.work(desk, operation.id) is None
    outcomes = [item.outcome for item in operations.items(desk, operation.id)]
    assert outcomes == ["sent" if act == "replay" else "done"] + ["waiting"] * 11


@pytest.mark.parametrize(("act", "rate"), [("replay", 1000.0), ("discard", 500.0)])
def test_its_rate_is_kept_from_step_to_step_by_whoever_works_it(
    business: psycopg.Connection[Any],
    desk: Connection,
    monkeypatch: pytest.MonkeyPatch,
    act: str,
    rate: float,
) -> None:
    die(business, 2100)
    operation = begun(desk, act=act, rate=rate, at_once=True)
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    with desk.engine.connect() as other:
        for each in (desk, other, desk, other):
            pause = operations.work(each, operation.id)
            # Nobody sends the next ones at once, whoever asks.
            before = operations.operation(other, operation.id).done
            again = operations.work(other, operation.id)
            if pause is None:
                break
            assert again is not None and 0 < again <= pause
            assert operations.operation(other, operation.id).done == before
            slept.append(pause)
            rest(business)
    assert operations.operation(desk, operation.id).state == "done"
    assert sum(slept) >= 2000 / rate


def test_a_message_without_its_row_is_neither_compared_nor_edited(
    business: psycopg.Connection[Any], desk: Connection
) -> None:
    [one] = die(business, 1)
    business.execute("DELETE FROM outbox WHERE id = %s", [one])
    registry = Registry({})
    for act in (operate.compare, operate.edit):
        with pytest.raises(NotDead, match=f"message {one} has no text any more: nothing was done"):
            act(desk, one, b"{}", registry, 900_000, ANN)
    assert business.execute("SELECT count(*) FROM outbox_actions").fetchone() == (0,)
