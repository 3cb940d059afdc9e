"""What breaks while old messages go: kills, backups, prepared transactions, operators at work.

Desk, trace, sweep and audit agree before, while and after.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from streams import operate
from streams.database import connect, query
from streams.database.retention import Retention, holding
from streams.dev.wheels import postgres_bin
from streams.operate.relay_status import standing
from streams.relay.leader.housekeeping import Housekeeping
from streams.settings import load
from tests.fixtures.aged import (
    DROPPING,
    EMPTYING,
    PERIODS,
    acts,
    age,
    enqueue,
    leaves,
    old_outbox,
    retain,
    seen,
    work,
)
from tests.fixtures.forks import Forks
from tests.fixtures.killed import killed, wait_until
from tests.fixtures.stage import OPERATOR, Stage

MOMENTS = ("before", "sent", "answered")
# Roots that are published and have no state, and states without a row: half of a range.
HALVES = """
SELECT (SELECT count(*) FROM outbox
        WHERE resend_of IS NULL AND id NOT IN (SELECT outbox_id FROM outbox_state)),
       (SELECT count(*) FROM outbox_state WHERE outbox_id NOT IN (SELECT id FROM outbox))"""


@pytest.fixture
def aged(database: str) -> Iterator[Stage]:
    """Five ranges of old messages: most settled, some dead."""
    with old_outbox(database) as stage:
        yield stage


def agree(stage: Stage, before: Any) -> None:
    """Desk, trace, audit and sweep say what they said before, and nobody sees half of a range."""
    assert seen(stage) == before
    assert stage.bench.query(HALVES) == [(0, 0)]
    report = stage.bench.audit(stage.log)
    assert not report.wrong, report.wrong
    stage.bench.sweep(stage.log)
    assert stage.committed() == [], "what is settled was sent again"


def kills(aged: Stage, forks: Forks, directory: Path, moments: Callable[[str], Any]) -> None:
    """A pass that is killed again and again, and comes to its end."""
    before, partitions = seen(aged), leaves(aged)
    retired = "SELECT count(*) FROM outbox_retired"
    for word in EMPTYING:
        for moment in moments(word):
            killed(aged, forks, directory, word, moment)
            assert aged.bench.query(retired) == [(0,)], (word, moment)
    assert leaves(aged) == partitions
    agree(aged, before)
    for moment in moments("COMMIT"):
        killed(aged, forks, directory, "COMMIT", moment)
        agree(aged, before)
    for word in DROPPING:
        for moment in moments(word):
            killed(aged, forks, directory, word, moment)
            agree(aged, before)
    retain(aged)
    assert leaves(aged) == partitions - {"outbox_30", "outbox_state_30"}
    assert aged.bench.query(
        "SELECT first_id, kept, dropped_at IS NOT NULL FROM outbox_retired ORDER BY 1"
    ) == [(0, 2, False), (10, 3, False), (20, 1, False), (30, 0, True)]
    agree(aged, before)


def test_whoever_is_killed_in_the_middle_is_taken_over_from(
    aged: Stage, forks: Forks, tmp_path: Path
) -> None:
    some = {"TRUNCATE": "sent", "COMMIT": "sent", "DETACH": "sent", "UPDATE outbox_retired": "sent"}
    kills(aged, forks, tmp_path, lambda word: [some[word]] if word in some else [])


@pytest.mark.long
def test_whoever_is_killed_at_any_statement_is_taken_over_from(
    aged: Stage, forks: Forks, tmp_path: Path
) -> None:
    once = {("DROP TABLE", "answered"), ("UPDATE outbox_retired", "answered")}

    def moments(word: str) -> list[str]:
        return [moment for moment in MOMENTS if (word, moment) not in once]

    kills(aged, forks, tmp_path, moments)


@contextmanager
def vacuuming(aged: Stage) -> Iterator[None]:
    """Beside a vacuum, for which a detach does not wait."""
    aged.bench.connection.execute(
        "CREATE TABLE large AS SELECT n, repeat('x', 500) FROM generate_series(1, 10000) AS n"
    )
    with aged.bench.another() as cleaner:
        cleaner.autocommit = True
        cleaner.execute("SET vacuum_cost_delay = 100; SET vacuum_cost_limit = 1")
        cleaner.pgconn.send_query(b"VACUUM large")
        runs = (
            "SELECT EXISTS (SELECT FROM pg_stat_activity JOIN pg_stat_progress_vacuum USING (pid)"
            " WHERE relid = 'large'::regclass AND backend_xmin IS NOT NULL)"
        )
        wait_until(aged, runs)
        yield
        assert aged.bench.query(runs) == [(True,)]
        cleaner.pgconn.finish()


def test_a_prepared_transaction_is_waited_for_and_named(aged: Stage) -> None:
    before, partitions = seen(aged), leaves(aged)
    with aged.bench.another() as writer:
        text = '{"book": "a", "note": "prepared"}'
        prepared = aged.bench.insert(writer, "a", "plain", text)
        writer.execute("PREPARE TRANSACTION 'business'")
    with aged.bench.another() as operator:
        operator.execute("SELECT FROM outbox_state_0 WHERE outbox_id = 5 FOR UPDATE")
        operator.execute("PREPARE TRANSACTION 'an operator''s'")
    try:
        with vacuuming(aged):
            first, *others, last = retain(aged)
        assert (first.first, first.act, first.reason) == (0, "wait", "prepared transaction")
        assert [step.act for step in others] == ["empty"] * 3
        assert (last.act, last.reason) == ("wait", "prepared transaction")
        agree(aged, before)
    finally:
        aged.bench.connection.execute("COMMIT PREPARED 'business'")
        aged.bench.connection.execute("ROLLBACK PREPARED 'an operator''s'")
    assert acts(retain(aged)) == [(0, "empty", 2), (30, "drop", 0)]
    assert leaves(aged) == partitions - {"outbox_30", "outbox_state_30"}
    aged.send([row for row in aged.bench.rows(prepared - 1) if row.id == prepared])
    work(aged)
    assert aged.bench.query("SELECT count(*) FROM notes WHERE note = 'prepared'") == [(1,)]
    agree(aged, before)


def test_a_backup_has_everything_and_is_only_waited_for(aged: Stage) -> None:
    before = seen(aged)
    # More than fits into the pipe to whoever reads the backup: it stands still.
    aged.bench.connection.execute(
        "INSERT INTO notes (note) SELECT md5(n::text) FROM generate_series(1, 20000) AS n"
    )
    command = [str(postgres_bin() / "pg_dump"), "--data-only", aged.bench._url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as backup:
        assert backup.stdout is not None
        began = backup.stdout.read(1)
        steps = retain(aged)
        assert [step.act for step in steps] == ["wait"] * 4
        assert all("(pg_dump, " in (step.reason or "") for step in steps)
        enqueue(aged, "d", 1)
        assert seen(aged) == before
        dump = began + backup.stdout.read()
    assert backup.returncode == 0
    assert dump.count("edited") == 2  # the row that holds the text; the act
    assert acts(retain(aged))[0] == (0, "empty", 2)
    aged.bench.connection.execute("DELETE FROM notes WHERE outbox_id IS NULL")
    agree(aged, before)


def test_an_old_snapshot_sees_all_that_it_saw_when_it_looked_first(aged: Stage) -> None:
    """What it has touched waits for it; what it touches for the first time later is retired."""
    with aged.bench.another() as report:
        report.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        rows = report.execute("SELECT * FROM outbox ORDER BY id").fetchall()
        states = report.execute("SELECT * FROM outbox_state ORDER BY outbox_id").fetchall()
        assert {step.act for step in retain(aged)} == {"wait"}
        enqueue(aged, "d", 1)
        assert report.execute("SELECT * FROM outbox ORDER BY id").fetchall() == rows
        again = report.execute("SELECT * FROM outbox_state ORDER BY outbox_id").fetchall()
        assert again == states
    assert {step.act for step in retain(aged)} == {"empty", "drop"}


def test_what_cannot_be_deleted_holds_up_nothing_else_and_is_told(aged: Stage) -> None:
    """A trigger of somebody's own."""
    aged.bench.connection.execute(
        "CREATE FUNCTION forbid() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN RAISE 'a word of theirs'; END$$;"
        "CREATE TRIGGER forbid BEFORE DELETE ON outbox_rejects EXECUTE FUNCTION forbid();"
        'INSERT INTO outbox_rejects (topic, partition, "offset", reason, at)'
        " SELECT 't', 0, 1, 'r', now() - interval '9 years';"
        "INSERT INTO outbox_actions (who, act, at) SELECT 'a', 'b', now() - interval '9 years'"
    )
    settings = load(environ={"DATABASE_URL": aged.bench._url})
    housekeeping = Housekeeping(settings, [])

    async def rounds() -> None:
        async with await connect(settings.database_url) as connection:
            for _ in range(2):  # the next hour's is the next one that deletes
                await housekeeping.round(connection)
                housekeeping._retained_at = -60.0

    aged.bench.run(rounds())
    assert aged.bench.query("SELECT count(*) FROM outbox_actions WHERE act = 'b'") == [(0,)]
    [relay] = standing(aged.bench.operators)
    [line] = relay.retention
    assert line == (
        "retention: expire_rejects of what is too old: PostgreSQL refuses it: RaiseException"
        " (SQLSTATE P0001)"
    )


def test_a_dead_letter_that_cannot_be_given_up_holds_up_no_other_range(aged: Stage) -> None:
    """A trigger of somebody's own refuses one, and another one keeps one as it is."""
    aged.bench.connection.execute(
        "UPDATE outbox_state SET updated_at = now() - interval '400 days' WHERE status = 'dead';"
        "CREATE FUNCTION forbid() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN IF OLD.outbox_id = 5 THEN RAISE 'a word of theirs'; END IF; RETURN NULL; END$$;"
        "CREATE TRIGGER forbid BEFORE UPDATE ON outbox_state FOR EACH ROW"
        " WHEN (OLD.outbox_id = 5 OR OLD.outbox_id = 13) EXECUTE FUNCTION forbid();"
        'INSERT INTO outbox_foreign (source, outbox_id, topic, key, partition, "offset", status,'
        " payload, created_at, updated_at) SELECT 'theirs', n, 't', 'k', 0, n, 'dead', '{}', now(),"
        " now() - interval '400 days' FROM generate_series(1, 3) AS n"
    )

    async def expire() -> list[str]:
        async with await connect(aged.bench._url) as connection, holding(connection):
            return await Retention(connection, PERIODS).expire()

    [failed] = aged.bench.run(expire())
    assert failed == (
        "discard of what is dead too long among 0 to 9: PostgreSQL refuses it: RaiseException"
        " (SQLSTATE P0001)"
    )
    gone = "SELECT count(*) FROM outbox_foreign WHERE status = 'dead'"
    assert aged.bench.query(gone) == [(0,)]
    aged.bench.connection.execute("DROP TRIGGER forbid ON outbox_state")
    assert aged.bench.run(expire()) == []
    assert aged.bench.query("SELECT count(*) FROM outbox_state WHERE status = 'dead'") == [(0,)]


def keep_house(stage: Stage) -> tuple[str, ...]:
    """A leader's first round, where messages stay for two weeks; what it says holds that up."""
    environ = {"DATABASE_URL": stage.bench._url, "STREAMS_OUTBOX__RETENTION_DAYS": "14"}
    settings = load(environ=environ)

    async def round_() -> None:
        async with await connect(settings.database_url) as connection:
            await Housekeeping(settings, []).round(connection)

    stage.bench.run(round_())
    [relay] = standing(stage.bench.operators)
    stage.bench.operators.rollback()
    return relay.retention


def test_a_partition_that_cannot_be_dropped_holds_up_no_other_and_is_told(aged: Stage) -> None:
    """A view of somebody's own stands on it."""
    enqueue(aged, "d", 10)
    age(aged)
    aged.bench.connection.execute("CREATE VIEW theirs AS SELECT id FROM outbox_30")
    [line] = keep_house(aged)
    there = (
        "SELECT first_id, dropped_at IS NULL FROM outbox_retired WHERE first_id >= 30 ORDER BY 1"
    )
    assert aged.bench.query(there) == [(30, True), (40, False)]
    assert line == (
        "retention of messages 30 to 39 waits: PostgreSQL refuses it: DependentObjectsStillExist"
        " (SQLSTATE 2BP01), view theirs depends on table outbox_30"
    )
    aged.bench.connection.execute("DROP VIEW theirs")
    assert (30, "drop", 0) in acts(retain(aged))


def test_a_pass_that_fails_as_a_whole_is_told(aged: Stage) -> None:
    """A column is missing that it asks for."""
    aged.bench.connection.execute("ALTER TABLE outbox_retired RENAME COLUMN dropped_at TO gone")
    assert keep_house(aged) == (
        "retention: PostgreSQL refuses it: UndefinedColumn (SQLSTATE 42703)",
    )


def meanwhile(stage: Stage, word: str, act: Callable[[], None]) -> list[Any]:
    """One pass of retention; before its first statement with this word somebody acts."""

    class Paused(psycopg.AsyncConnection[Any]):
        acted = False

        async def execute(self, statement: Any, *arguments: Any, **options: Any) -> Any:  # type: ignore[override]
            composed = isinstance(statement, sql.Composable)
            text = statement.as_string(self) if composed else str(statement)
            if word in text and not Paused.acted:
                Paused.acted = True
                act()
            return await super().execute(statement, *arguments, **options)

    async def run() -> list[Any]:
        connection = await Paused.connect(stage.bench._url, autocommit=True)
        async with connection, holding(connection):
            work = Retention(connection, PERIODS)
            await work.expire()
            steps = [step async for step in work.steps()]
        assert Paused.acted
        return steps

    return stage.bench.run(run())


def test_what_is_replayed_meanwhile_stays_and_is_worked(aged: Stage) -> None:
    """One replay comes between proof and lock, an edited one while the range is empty."""
    desk = operate.replay

    def replay() -> None:
        list(desk(aged.bench.operators, [5], OPERATOR, operate.Choice()))

    waits: list[threading.Thread] = []

    def edit() -> None:
        """It waits for the range, and then goes on as if nothing had been."""

        def late() -> None:
            text = b'{"book": "a", "note": "edited late"}'
            operate.edit(aged.bench.operators, 6, text, aged.bench.registry, 900_000, OPERATOR)

        waits.append(threading.Thread(target=late))
        waits[0].start()
        wait_until(
            aged,
            "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND database ="
            " (SELECT oid FROM pg_database WHERE datname = current_database())",
        )
        # Whoever enqueues does not wait.
        aged.insert(aged.bench.connection, "d", "plain")

    assert acts(meanwhile(aged, "LOCK TABLE", replay))[0] == (0, "empty", 2)
    assert aged.bench.query("SELECT status FROM outbox_state WHERE outbox_id = 5") == [
        ("replaying",)
    ]
    aged.bench.handler.faults.clear()
    work(aged)
    assert aged.bench.query("SELECT status FROM outbox_state WHERE outbox_id = 5") == [
        ("consumed",)
    ]
    # Another round of the first range, for 5 is settled now; 6 is edited while it is empty.
    assert acts(meanwhile(aged, "INSERT INTO outbox (", edit))[0] == (0, "empty", 1)
    waits[0].join(30)
    assert aged.bench.query("SELECT status FROM outbox_state WHERE outbox_id = 6") == [
        ("replaying",)
    ]
    work(aged)
    assert aged.bench.query("SELECT note FROM notes WHERE outbox_id IN (5, 6) ORDER BY 1") == [
        ("edited late",),
        ("n0005",),
    ]
    agree(aged, seen(aged))
    assert acts(retain(aged))[0] == (0, "empty", 0)
    agree(aged, seen(aged))


def test_another_systems_message_that_is_replayed_meanwhile_is_not_given_up(aged: Stage) -> None:
    """It was dead for long when retention looked; an operator was quicker than its lock."""
    aged.bench.query(
        "INSERT INTO outbox_foreign (source, outbox_id, biz_type, topic, key, status, payload,"
        " updated_at) SELECT 'seed', n, 'plain', 'seeds', 'a', 'dead', '{}',"
        " now() - interval '400 days' FROM generate_series(1, 2) AS n RETURNING 1"
    )

    def replay() -> None:
        list(operate.replay(aged.bench.operators, ["seed:1"], OPERATOR, operate.Choice()))

    meanwhile(aged, str(query("foreign_lock")), replay)
    assert aged.bench.query(
        "SELECT outbox_id, status, payload FROM outbox_foreign ORDER BY outbox_id"
    ) == [(1, "retrying", "{}"), (2, "discarded", None)]
    assert aged.bench.query(
        "SELECT what -> 'ids' FROM outbox_actions WHERE act = 'discard' AND who = 'retention'"
    ) == [(["seed:2"],)]


def test_a_role_that_may_not_is_told_about_what_else_is_old(aged: Stage, name: str) -> None:
    """Reports of audits go after 90 days without a word in faust.yml, if the role may."""
    aged.bench.connection.execute(
        f"CREATE ROLE {name}_relay LOGIN;"
        f" GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {name}_relay;"
        "INSERT INTO outbox_audits (at, seconds, complete, messages, wrong, report)"
        " VALUES (now() - interval '92 days', 1, true, 1, 0, '{}')".encode()
    )
    url = aged.bench._url

    def told(role: str) -> tuple[str, ...]:
        settings = load(environ={"DATABASE_URL": url.replace("postgres@", f"{role}@")})

        async def round_() -> None:
            async with await connect(settings.database_url) as connection:
                await Housekeeping(settings, []).round(connection)

        aged.bench.run(round_())
        [relay] = standing(aged.bench.operators)
        aged.bench.operators.rollback()
        return tuple(relay.retention)

    try:
        [line] = told(f"{name}_relay")
        assert line.startswith(f"retention: role {name}_relay may not drop partitions: run")
        assert not told("postgres")
        assert aged.bench.query("SELECT count(*) FROM outbox_audits") == [(0,)]
    finally:
        aged.bench.connection.execute(
            f"DROP OWNED BY {name}_relay; DROP ROLE {name}_relay".encode()
        )
