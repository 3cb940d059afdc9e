"""Old messages go, and whoever still needs one finds it: nobody ever sees half of a range."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import sql

from streams import operate
from streams.cli import cli
from streams.database import connect, locks, query, retention
from streams.database.retention import Busy, Proof, Retention, holding
from streams.operate.faults import relay_faults
from streams.operate.relay_status import standing
from streams.relay.leader.housekeeping import Housekeeping
from streams.relay.source.cdc import CdcSource
from streams.settings import Outbox, Settings, Topic, load
from tests.fixtures.aged import EMPTYING, PERIODS, acts, age, leaves, old_outbox, retain, seen, work
from tests.fixtures.listed import TOPIC
from tests.fixtures.slots import drop_slot
from tests.fixtures.stage import OPERATOR, Stage

SCHEMA = Path(__file__).parents[2] / "db" / "schema.sql"


@pytest.fixture
def aged(database: str) -> Iterator[Stage]:
    """Five ranges of old messages: most settled, some dead."""
    with old_outbox(database) as stage:
        yield stage


def test_a_range_is_emptied_but_for_what_somebody_still_needs_and_dropped_when_that_is_nothing(
    aged: Stage,
) -> None:
    before, partitions = seen(aged), leaves(aged)
    assert acts(retain(aged, dry=True)) == [
        (0, "empty", 2),
        (10, "empty", 3),
        (20, "empty", 0),
        (30, "empty", 0),
    ]
    assert leaves(aged) == partitions
    assert seen(aged) == before
    assert acts(retain(aged)) == [
        (0, "empty", 2),
        (10, "empty", 3),
        (20, "empty", 1),
        (30, "empty", 0),
        (30, "drop", 0),
    ]
    assert seen(aged) == before
    assert leaves(aged) == partitions - {"outbox_30", "outbox_state_30"}
    assert aged.bench.query("SELECT id FROM outbox WHERE id < 40 ORDER BY 1") == [
        (5,),
        (6,),
        (13,),
        (14,),
        (15,),
        (22,),
    ]
    assert acts(retain(aged)) == []
    report = aged.bench.audit(aged.log)
    assert not report.wrong, report.wrong
    # What is left can be replayed, the edited text too; and then it goes as well.
    aged.bench.handler.faults.clear()
    ids = operate.plan(aged.bench.operators, operate.Choice())
    list(operate.replay(aged.bench.operators, ids, OPERATOR, operate.Choice()))
    work(aged)
    for number, key in ((0, "b"), (0, "a")):
        aged.bench.query(
            "UPDATE outbox_state SET next_retry_at = now() WHERE status = 'retrying' RETURNING 1"
        ) or number
        aged.wake_up([key], 1000)
    assert aged.bench.query("SELECT count(*) FROM outbox_state WHERE status <> 'consumed'") == [
        (0,)
    ]
    assert aged.bench.query("SELECT note FROM notes WHERE outbox_id = 6") == [("edited",)]
    assert acts(retain(aged)) == [
        (0, "empty", 0), (10, "empty", 0), (20, "empty", 0),
        (0, "drop", 0), (10, "drop", 0), (20, "drop", 0),
    ]  # fmt: skip
    age(aged, 0)
    report = aged.bench.audit(aged.log)
    assert not report.wrong, report.wrong


def test_a_record_of_a_message_that_is_gone_is_skipped(aged: Stage) -> None:
    records = {number: list(log) for number, log in aged.log.partitions.items()}
    notes = aged.bench.query("SELECT * FROM notes")
    retain(aged)
    for number in records:
        aged.log.committed[number] = 0
        run = aged.next_run(number, 1000)
        assert run is not None
        outcome = aged.bench.run(aged.bench.workers[1].persist(run))
        assert outcome is not None
        assert outcome.rejected == []
        assert outcome.consumed == 0
    assert aged.bench.query("SELECT count(*) FROM outbox_rejects") == [(0,)]
    assert aged.bench.query("SELECT * FROM notes") == notes


def test_what_is_young_unpublished_or_without_a_fate_stays(aged: Stage) -> None:
    aged.bench.query("UPDATE outbox SET created_at = now() WHERE id = 29 RETURNING 1")
    aged.bench.query("DELETE FROM outbox_state WHERE outbox_id = 3 RETURNING 1")
    aged.bench.query(
        "UPDATE outbox_state SET topic = NULL, key = NULL WHERE outbox_id = 14 RETURNING 1"
    )
    first, second, third = retain(aged)
    assert (first.act, first.reason) == (
        "wait",
        "1 messages have no fate yet: the sweep sends them again",
    )
    assert second.reason == "1 states contradict their rows: run `streams audit --full`"
    assert (third.act, third.reason, round(third.days or 0)) == ("wait", None, 14)
    # A floor that does not move is named, but not by what is young.
    aged.bench.raise_floor(8)
    [(relay,)] = aged.bench.query("SELECT name FROM relay_position")
    for dry in (True, False):
        assert [
            (step.first, step.act, step.days, step.reason) for step in retain(aged, dry=dry)
        ] == [
            (first, "wait", None, f"it is above the floor 8 of relay {relay}") for first in (0, 10)
        ]
    # One with a row, and no more than that; and where there never was one.
    aged.bench.query(
        "INSERT INTO relay_position (name, mode, floor) VALUES ('gone', 'poll', 3) RETURNING 1"
    )
    assert retain(aged)[0].reason == "it is above the floor 3 of relay gone"
    aged.bench.query("DELETE FROM relay_position RETURNING 1")
    assert retain(aged)[0].reason == "no relay has published it"


def test_one_row_of_another_time_does_not_say_how_old_its_range_is(aged: Stage) -> None:
    move = "UPDATE outbox SET created_at = {} WHERE id {} RETURNING 1"
    # The last rows: a clock years ahead, or none; then years back, in a range of today.
    aged.bench.query(move.format("now() + interval '9 years'", "= 9"))
    aged.bench.query(move.format("'infinity'", "= 19"))
    aged.bench.query(move.format("now()", "BETWEEN 22 AND 28"))
    aged.bench.query(move.format("'2001-01-01'", "= 29"))
    *old, young = retain(aged)
    assert acts(old) == [(0, "empty", 2), (10, "empty", 3)]
    assert (young.first, young.act, round(young.days or 0)) == (20, "wait", 14)
    # Where no row says it, that range waits, and those behind it go on.
    aged.bench.query(move.format("'-infinity'", "BETWEEN 20 AND 29"))
    third, *younger = retain(aged)
    assert (third.act, third.reason) == ("wait", retention.AGELESS)
    assert acts(younger)[0] == (30, "empty", 0)


@pytest.mark.parametrize("time", ["infinity", "-infinity", "20000-01-01"])
def test_the_rate_that_partitions_are_made_for_bears_a_row_of_another_time(
    aged: Stage, time: str
) -> None:
    aged.bench.query("UPDATE outbox SET created_at = %s WHERE id = 1 RETURNING 1", time)
    recent = aged.bench.connection.execute(query("recent_rows"), {"last": aged.newest})
    [(ids, seconds)] = recent.fetchall()
    assert ids >= 38 and 19 < seconds / 86_400 < 21


def test_a_range_of_which_much_is_left_stays_as_it_is(
    aged: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "LEFT_MOST", 0.25)
    second = retain(aged)[1]
    assert (second.first, second.act, second.left) == (10, "wait", 3)
    assert (
        second.reason == "3 of 10 rows are of messages that are not settled: replay or discard them"
    )


def test_nobody_is_waited_for_and_who_holds_it_up_is_named(aged: Stage) -> None:
    with aged.bench.another() as backup, aged.bench.another() as writer:
        writer.execute(
            "INSERT INTO outbox (biz_type, topic, key, payload)"
            " VALUES ('plain', 'notes', 'a', '{}')"
        )
        backup.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        backup.execute("SET application_name = 'a backup'")
        backup.execute("SELECT count(*) FROM outbox_0")
        writing = writer.info.backend_pid
        backing = f"pid {backup.info.backend_pid} (a backup, idle in transaction)"
        first, *others = retain(aged)
        assert first.reason == backing
        dropped = others.pop()
        assert [step.act for step in others] == ["empty"] * 3
        # The detach waits for whoever writes and whose snapshot is older; it is pending from now
        # on, and what it hides is empty.
        assert (dropped.act, dropped.reason) == (
            "wait",
            f"pid {writing} (client backend, idle in transaction), the snapshot of {backing}",
        )
        assert aged.bench.query("SELECT count(*) FROM pg_inherits WHERE inhdetachpending") == [(1,)]
        aged.insert(aged.bench.connection, "d", "plain")
        assert backup.execute("SELECT count(*) FROM outbox_0").fetchone() == (9,)
    assert acts(retain(aged)) == [(0, "empty", 2), (30, "drop", 0)]


def test_whoever_is_killed_between_two_steps_is_taken_over_from(aged: Stage) -> None:
    retain_no_further(aged, "DETACH")
    assert aged.bench.query("SELECT count(*) FROM outbox_retired WHERE dropped_at IS NULL") == [
        (4,)
    ]
    aged.bench.connection.execute("ALTER TABLE outbox DETACH PARTITION outbox_30 CONCURRENTLY")
    aged.insert(aged.bench.connection, "d", "plain")
    retain_no_further(aged, "DROP")
    assert not {"outbox_30", "outbox_state_30"} & leaves(aged)
    assert aged.bench.query(
        "SELECT count(*) FROM pg_class WHERE relname ~ '^outbox_(state_)?30$'"
    ) == [(2,)]
    assert acts(retain(aged)) == [(30, "drop", 0)]
    assert aged.bench.query(
        "SELECT count(*) FROM pg_class WHERE relname ~ '^outbox_(state_)?30$'"
    ) == [(0,)]
    assert not aged.bench.audit(aged.log).wrong


def test_whoever_is_killed_while_a_range_is_emptied_has_done_nothing(aged: Stage) -> None:
    before, partitions = seen(aged), leaves(aged)
    rows = aged.bench.query("SELECT * FROM outbox ORDER BY id")
    for word in EMPTYING:
        retain_no_further(aged, word)
        assert aged.bench.query("SELECT count(*) FROM outbox_retired") == [(0,)], word
        assert aged.bench.query("SELECT * FROM outbox ORDER BY id") == rows, word
    assert (seen(aged), leaves(aged)) == (before, partitions)
    retain(aged)
    assert seen(aged) == before


def test_what_is_put_back_is_whole() -> None:
    """A column that is added later would be lost without a sound."""
    for table, name in (("outbox", "restore_rows"), ("outbox_state", "restore_states")):
        columns = re.findall(
            rf"^CREATE TABLE public\.{table} \((.*?)^\)",
            SCHEMA.read_text(),
            re.DOTALL | re.MULTILINE,
        )[0]
        names = set(re.findall(r'^    "?([a-z_]+)"? (?!CHECK)', columns, re.MULTILINE)) - {
            "CONSTRAINT"
        }
        listed = re.findall(rf"INSERT INTO {table} \((.*?)\)", str(query(name)), re.DOTALL)[0]
        assert {each.strip().strip('"') for each in listed.split(",")} == names


def test_a_row_that_was_not_visible_when_a_range_was_read_keeps_it(aged: Stage) -> None:
    """Committed, and not visible until a standby has it: its record may come before its row."""
    aged.bench.query("DELETE FROM outbox_state WHERE outbox_id = 3 RETURNING 1")
    [hidden] = aged.bench.query("DELETE FROM outbox WHERE id = 3 RETURNING key, payload::text")
    proofs: dict[int, Proof] = {}
    assert acts(retain(aged, dry=True, proofs=proofs))[0] == (0, "empty", 2)
    aged.bench.query(
        "INSERT INTO outbox (id, biz_type, topic, key, payload, created_at) OVERRIDING SYSTEM VALUE"
        " VALUES (3, 'plain', %s, %s, %s, now() - interval '20 days') RETURNING 1",
        TOPIC,
        *hidden,
    )
    first = retain(aged, proofs=proofs)[0]
    assert (first.act, first.reason) == ("wait", "rows came into it: it is read once more")
    first = retain(aged, proofs=proofs)[0]
    assert first.reason == "1 messages have no fate yet: the sweep sends them again"
    assert aged.bench.query("SELECT count(*) FROM outbox WHERE id < 10") == [(9,)]


def test_states_and_what_is_open_have_to_agree(aged: Stage) -> None:
    """What is in no line is not taken for settled; nor is one that only the line knows."""
    before = aged.bench.query("SELECT * FROM outbox WHERE id < 20 ORDER BY id")
    aged.bench.connection.execute(
        "DELETE FROM outbox_open WHERE outbox_id = 14;"
        " INSERT INTO outbox_open (outbox_id, topic, since, attempts, status)"
        " VALUES (2, 'notes', now(), 1, 'retrying')"
    )
    reasons = {step.first: step.reason for step in retain(aged)}
    contradiction = retention.CONTRADICTION
    assert reasons[0] == contradiction
    # The state tells: the message stays, whatever outbox_open says of it.
    assert reasons[10] is None
    assert aged.bench.query("SELECT * FROM outbox WHERE id < 10 ORDER BY id") == before[:9]
    assert aged.bench.query("SELECT status FROM outbox_state WHERE outbox_id = 14") == [("parked",)]
    assert aged.bench.query("SELECT status FROM outbox_open WHERE outbox_id = 14") == [("parked",)]


def test_what_sends_a_message_without_a_fate_again_stays(aged: Stage) -> None:
    """Its message is in a range that has to wait; this one need not."""
    aged.bench.query("UPDATE outbox SET resend_of = 4, key = 'a' WHERE id = 31 RETURNING 1")
    aged.bench.query("DELETE FROM outbox_state WHERE outbox_id IN (4, 31) RETURNING 1")
    steps = {step.first: step for step in retain(aged)}
    assert steps[0].act == "wait"
    assert (steps[30].act, steps[30].left) == ("empty", 1)
    assert aged.bench.query("SELECT id FROM outbox WHERE id >= 30 AND id < 40") == [(31,)]
    # What was never emptied is not taken for gone, though a younger range was.
    among = aged.bench.connection.execute(query("retired_among"), {"ids": [3, 33, 10**9]})
    assert among.fetchall() == [(33,)]


def test_a_range_that_somebody_wrote_into_is_not_dropped(aged: Stage) -> None:
    retain_no_further(aged, "DETACH")
    aged.bench.query(
        "INSERT INTO outbox_state (outbox_id, status, updated_at)"
        " VALUES (33, 'consumed', now()) RETURNING 1"
    )
    assert (retain(aged)[-1].act, retain(aged)[-1].reason) == ("wait", retention.WRITTEN)
    assert {"outbox_30", "outbox_state_30"} <= leaves(aged)


def test_nothing_is_emptied_while_an_audit_runs(aged: Stage) -> None:
    with aged.bench.another() as auditor:
        auditor.execute(query("emptying_wait"))
        assert {(step.act, step.reason) for step in retain(aged)} == {("wait", "an audit runs")}
        auditor.execute(query("emptying_go_on"))
    assert retain(aged)[0].act == "empty"


def test_a_relay_that_reads_the_log_hands_nothing_over_that_was_put_back(
    aged: Stage, name: str
) -> None:
    aged.bench.connection.execute(
        f"CREATE PUBLICATION {name} FOR TABLE outbox"
        " WITH (publish = 'insert', publish_via_partition_root = true)".encode()
    )
    aged.bench.query("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", name)
    put_back = sum(step.left for step in retain(aged) if step.act == "empty")
    marker = aged.insert(aged.bench.connection, "d", "plain")

    async def read(published: int) -> list[int]:
        ids: list[int] = []
        async with CdcSource(aged.bench._url, slot=name, publication=name) as source:
            source.skip(lambda: published)
            async for rows in source:
                ids += [row.id for row in rows.rows]
                if marker in ids:
                    break
        return ids

    async def twice() -> list[list[int]]:
        async with asyncio.timeout(30):
            everything = await read(0)
            # Its session ends a moment after it has gone.
            active = "SELECT FROM pg_replication_slots WHERE slot_name = %s AND active"
            while aged.bench.query(active, name):
                await asyncio.sleep(0.05)
            return [everything, await read(marker - 1)]

    try:
        everything, new = aged.bench.run(twice())
    finally:
        drop_slot(aged.bench._url, name)
    assert len(everything) == put_back + 1
    assert new == [marker]


def retain_no_further(stage: Stage, word: str) -> None:
    """As far as a statement with this word: there the session is killed."""

    class Killed(psycopg.AsyncConnection[Any]):
        async def execute(self, statement: Any, *arguments: Any, **options: Any) -> Any:  # type: ignore[override]
            text = (
                statement.as_string(self)
                if isinstance(statement, sql.Composable)
                else str(statement)
            )
            if word in text:
                # Waits until it is gone, with its locks: its client hears of it before.
                stage.bench.query("SELECT pg_terminate_backend(%s, 30000)", self.info.backend_pid)
            return await super().execute(statement, *arguments, **options)

    async def run() -> None:
        connection = await Killed.connect(stage.bench._url, autocommit=True)
        with pytest.raises(psycopg.OperationalError):
            async with connection, holding(connection):
                [step async for step in Retention(connection, PERIODS).steps()]

    stage.bench.run(run())


def test_dead_letters_have_a_period_too(aged: Stage) -> None:
    aged.bench.query(
        "UPDATE outbox_state SET updated_at = now() - interval '400 days'"
        " WHERE outbox_id IN (5, 6) RETURNING 1"
    )
    assert acts(retain(aged))[0] == (0, "empty", 0)
    assert aged.bench.query(
        "SELECT who, act, what -> 'ids', why FROM outbox_actions WHERE act = 'discard'"
    ) == [("retention", "discard", [5, 6], "dead for more than 365 days")]


def test_what_else_grows_has_a_period(aged: Stage) -> None:
    aged.bench.connection.execute(
        'INSERT INTO outbox_rejects (topic, partition, "offset", reason, at)'
        " SELECT 't', 0, n, 'x', now() - n * interval '60 days' FROM generate_series(0, 2) AS n;"
        "INSERT INTO outbox_audits (at, seconds, complete, messages, wrong, report)"
        " SELECT now() - n * interval '60 days', 1, true, 1, 0, '{}'"
        " FROM generate_series(0, 2) AS n;"
        "DELETE FROM outbox_actions; INSERT INTO outbox_actions (at, who, act)"
        " SELECT now() - n * interval '300 days', 'ann', 'replay' FROM generate_series(0, 2) AS n;"
        "INSERT INTO outbox_operations (act, who, through, hash, planned, state, ended_at)"
        " SELECT 'replay', 'ann', 0, '', 1, CASE n WHEN 3 THEN 'running' ELSE 'done' END,"
        " now() - n * interval '300 days' FROM generate_series(0, 3) AS n;"
        "INSERT INTO outbox_operation_items (operation, position, outbox_id)"
        " SELECT id, 1, 1 FROM outbox_operations;"
        "INSERT INTO outbox_direct VALUES (38), (99);"
        "INSERT INTO outbox_foreign (source, outbox_id, status, open, updated_at)"
        " SELECT 'seed', n, CASE n WHEN 9 THEN 'parked' ELSE 'consumed' END, n = 9,"
        " now() - n * interval '60 days' FROM generate_series(0, 9, 3) AS n"
    )
    retain(aged)
    assert aged.bench.query("SELECT outbox_id FROM outbox_foreign ORDER BY 1") == [(0,), (9,)]
    retain(aged)  # by ranges that were emptied
    for table in ("outbox_rejects", "outbox_audits", "outbox_actions"):
        assert aged.bench.query(f"SELECT count(*) FROM {table}") == [(2,)]
    for table in ("outbox_operations", "outbox_operation_items"):
        assert aged.bench.query(f"SELECT count(*) FROM {table}") == [(3,)], table
    assert aged.bench.query("SELECT outbox_id FROM outbox_direct") == [(99,)]


def test_what_is_known_of_other_systems_messages_outlives_their_own_records() -> None:
    """A record that is read once more would be persisted once more."""
    settings = Settings(
        outbox=Outbox(retention_days=14, foreign_days=15),
        topics={"seed": Topic(format="envelope", retention_hours=90 * 24)},
    )
    kept = retention.periods(settings, ["ours"], ["seed"])
    assert (kept.messages, kept.foreign) == (14, 187)
    assert retention.periods(settings, ["ours"]).foreign == 21


def test_a_leader_does_it_and_says_what_holds_it_up(
    aged: Stage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load(
        environ={"DATABASE_URL": aged.bench._url, "STREAMS_OUTBOX__RETENTION_DAYS": "14"}
    )

    async def round_() -> None:
        async with await connect(aged.bench._url, session={"lock_timeout": "300ms"}) as connection:
            await Housekeeping(settings, [TOPIC]).round(connection)

    with aged.bench.another() as backup:
        backup.execute("SELECT count(*) FROM outbox_0")
        aged.bench.run(round_())
        [relay] = standing(aged.bench.operators)
        pid = backup.info.backend_pid
        assert relay.retention[0].startswith(f"retention of messages 0 to 9 waits: pid {pid} (")
        assert "outbox.retention_waits" in {fault.code for fault in relay_faults(relay)}
        assert relay.retention_idle is not None and relay.retention_idle < 30
        aged.bench.operators.rollback()
    aged.bench.run(round_())
    [relay] = standing(aged.bench.operators)
    assert not relay.retention
    aged.bench.operators.rollback()
    # While somebody else is at it, what is known stays known: that one may have been paused.
    said = '{"waits": ["a"], "at": "2026-01-01"}'
    aged.bench.query("UPDATE relay_position SET retention = %s RETURNING 1", said)
    caplog.set_level("INFO", "streams.relay")
    with aged.bench.another() as person:
        person.execute(query("lock_alone"), {"lock": locks.RETENTION})
        aged.bench.run(round_())
        pid = person.info.backend_pid
    [relay] = standing(aged.bench.operators)
    assert relay.retention == ("a",)
    assert relay.retention_idle is not None and relay.retention_idle > 86_400
    [left] = [each for each in caplog.records if each.getMessage() == "retention left to another"]
    assert left.__dict__["reason"].startswith(f"another process is at it (pid {pid}, ")
    aged.bench.operators.rollback()
    # Neither is anything taken away by a clock that may be the wrong one.
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 86_400)
    aged.bench.run(round_())
    [relay] = standing(aged.bench.operators)
    assert relay.retention[0].startswith("retention: the clock of PostgreSQL is 24.0 hours ahead")
    aged.bench.operators.rollback()
    assert not {"outbox_30", "outbox_state_30"} & leaves(aged)


def test_a_role_that_may_not_is_told_what_to_run(aged: Stage, name: str) -> None:
    aged.bench.connection.execute(
        f"CREATE ROLE {name}_relay LOGIN;"
        f" GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}_relay".encode()
    )

    async def hold() -> None:
        url = aged.bench._url.replace("postgres@", f"{name}_relay@")
        async with await connect(url) as connection:
            with pytest.raises(
                Busy,
                match=f"role {name}_relay may not .* run `streams retention` as postgres, or GRANT",
            ):
                async with holding(connection):
                    pass

    aged.bench.run(hold())
    aged.bench.connection.execute(f"DROP OWNED BY {name}_relay; DROP ROLE {name}_relay".encode())


def test_the_command_says_what_it_would_do_and_does_it(
    aged: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", aged.bench._url)
    before = (seen(aged), leaves(aged))
    kept = CliRunner().invoke(cli, ["retention"])
    assert kept.exit_code == 0
    assert kept.stdout == "messages are kept for ever: outbox.retention_days is not set\n"
    assert (seen(aged), leaves(aged)) == before
    monkeypatch.setenv("STREAMS_OUTBOX__RETENTION_DAYS", "14")
    result = CliRunner().invoke(cli, ["retention", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "messages 0 to 9" in result.stdout
    assert "would be emptied, 2 rows are left" in result.stdout
    steps = json.loads(CliRunner().invoke(cli, ["retention", "--json"]).stdout)
    assert [(step["first"], step["act"]) for step in steps][-1] == (30, "drop")
    assert CliRunner().invoke(cli, ["retention"]).stdout == "nothing is old enough\n"
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 86_400)
    dry = CliRunner().invoke(cli, ["retention", "--dry-run"])
    assert dry.exit_code == 1
    assert "nothing would be done: the clock of PostgreSQL is 24.0 hours ahead" in dry.stderr


def test_an_archive_that_is_away_keeps_messages_and_nothing_else(
    aged: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", aged.bench._url)
    monkeypatch.setenv("STREAMS_OUTBOX__RETENTION_DAYS", "14")
    monkeypatch.setenv("STREAMS_OUTBOX__ARCHIVE", "nosuch://bucket/outbox")
    aged.bench.connection.execute(
        "INSERT INTO outbox_actions (who, act, at) SELECT 'a', 'b', now() - interval '9 years'"
    )
    before = leaves(aged)
    dry = CliRunner().invoke(cli, ["retention", "--dry-run"])
    assert dry.exit_code == 1
    assert "nosuch" in dry.stderr
    assert "messages 0 to 9" in dry.stdout
    done = CliRunner().invoke(cli, ["retention"])
    assert done.exit_code == 1
    assert "nosuch" in done.stderr
    assert aged.bench.query("SELECT count(*) FROM outbox_actions WHERE act = 'b'") == [(0,)]
    assert leaves(aged) == before
