"""What PostgreSQL refuses an audit is told in one line, and is no verdict."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from streams.audit.effects import Effects
from streams.cli import cli
from streams.database import locks, query
from streams.effect import Effect
from streams.errors import ServiceUnreachable, StreamsError, UsageError
from streams.web.audit_apart import audit_apart
from tests.conftest import Eventually
from tests.fixtures.simulation import Bench
from tests.integration.audit.three_ranges import ROWS, audit, lose, missing

END_IT = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE application_name LIKE 'outbox-streams audit %' AND datname = current_database()"
)


def refused() -> StreamsError:
    """Why `streams audit` had no answer."""
    arguments = ["audit", "--patience", "0"]
    error = CliRunner().invoke(cli, arguments, standalone_mode=False).exception
    assert isinstance(error, StreamsError), repr(error)
    return error


def test_a_server_that_goes_away_in_the_middle_of_an_audit_is_no_bad_news(
    bench: Bench,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("DATABASE_URL", database)
    look = Effects.look

    def ended(effects: Effects, where: dict[str, Any]) -> set[int]:
        bench.query(END_IT)
        return look(effects, where)

    monkeypatch.setattr(Effects, "look", ended)
    error = refused()
    assert isinstance(error, ServiceUnreachable)
    assert "went away: " in str(error)
    assert [record.getMessage() for record in caplog.records] == []
    assert bench.query("SELECT count(*) FROM outbox_audits") == [(0,)]


def test_what_is_refused_is_named_without_a_word_of_the_row(
    bench: Bench, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database)
    bench.connection.execute("ALTER TABLE outbox_audits ADD CONSTRAINT no CHECK (messages < 0)")
    error = refused()
    assert isinstance(error, UsageError)
    assert str(error).endswith(
        " refuses: CheckViolation (SQLSTATE 23514), table outbox_audits, constraint no"
    )


async def test_the_process_that_audits_for_a_page_says_it_too(
    bench: Bench, database: str, eventually: Eventually
) -> None:
    with psycopg.connect(database, application_name="outbox-streams holds it") as other:
        other.execute(query("lock_alone"), {"lock": locks.AUDIT})
        asked = asyncio.create_task(audit_apart(bench.settings, full=False))
        await eventually(lambda: asked.done() or bench.query(END_IT))
        with pytest.raises(StreamsError, match="went away: "):
            await asked


def two_tables(bench: Bench) -> None:
    """Agents of two tables; messages 14 and 25 are of the second one, and have no effect."""
    held = replace(
        bench.registry.agents["held"],
        effect=Effect(table="letters", fields={"book": "book"}, order="id"),
    )
    bench.registry = replace(bench.registry, agents={**bench.registry.agents, "held": held})
    bench.connection.execute(
        "CREATE TABLE letters (id bigint GENERATED ALWAYS AS IDENTITY, outbox_id bigint,"
        " book text);"
        "UPDATE outbox SET biz_type = 'held' WHERE id IN (14, 25);"
        "DELETE FROM notes WHERE outbox_id IN (14, 25)"
    )


@pytest.mark.parametrize(
    ("spoil", "mend", "why"),
    [
        (
            "ALTER TABLE letters RENAME TO old_letters",
            "ALTER TABLE old_letters RENAME TO letters",
            'relation "letters" does not exist',
        ),
        (
            "ALTER TABLE letters RENAME book TO title",
            "ALTER TABLE letters RENAME title TO book",
            "column e.book does not exist",
        ),
        (
            """ALTER TABLE letters RENAME TO hidden; CREATE VIEW letters AS TABLE hidden;
            ALTER VIEW letters OWNER TO pg_monitor""",
            "DROP VIEW letters; ALTER TABLE hidden RENAME TO letters",
            "permission denied for table hidden",
        ),
    ],
    ids=["gone", "other columns", "no right"],
)
def test_a_table_that_cannot_be_read_holds_up_no_other_check(
    bench: Bench, spoil: str, mend: str, why: str
) -> None:
    two_tables(bench)
    lose(bench, 5)
    bench.connection.execute("DELETE FROM notes WHERE outbox_id = 15")
    bench.connection.execute(spoil)
    for full in (True, False, False):
        report = audit(bench, full=full)
        assert missing(report) == [5]
        assert set(report.wrong) == {"missing", "no_effect", "unchecked_table"}
        assert report.wrong["no_effect"]["examples"] == [{"outbox_id": 15, "table": "notes"}]
        [example] = report.wrong["unchecked_table"]["examples"]
        assert example == {"table": "letters", "why": example["why"]}
        assert why in example["why"]
        assert (report.until, report.first) == (ROWS, 1 if full else ROWS + 1)
        assert report.notes == []
    bench.connection.execute(mend)
    report = audit(bench)
    assert {each["outbox_id"] for each in report.wrong["no_effect"]["examples"]} == {14, 15, 25}
    assert report.notes == ["ids from 1 on are looked at again: letters could not be read"]
    report = audit(bench)
    assert (set(report.wrong), report.notes) == ({"missing", "no_effect"}, [])


def test_nothing_is_settled_or_sent_again_whose_effect_cannot_be_looked_for(bench: Bench) -> None:
    two_tables(bench)
    [(applied,)] = bench.query("SELECT applied FROM outbox_state WHERE outbox_id = 14")
    bench.connection.execute(
        "INSERT INTO letters (outbox_id, book) VALUES (25, 'a');"
        "UPDATE outbox_state SET status = 'dead', applied = NULL WHERE outbox_id = 14"
    )
    assert audit(bench).wrong == {}
    bench.connection.execute(
        "ALTER TABLE letters RENAME TO old_letters;"
        f"UPDATE outbox_state SET status = 'consumed', applied = {applied} WHERE outbox_id = 14"
    )
    assert set(audit(bench).wrong) == {"unchecked_table"}
    # Its state is lost, and its effect is where nobody can see it.
    bench.connection.execute("DELETE FROM outbox_state WHERE outbox_id = 25")
    lose(bench, 5)
    report = audit(bench, full=True, repair_as="ann")
    assert (missing(report), report.repaired) == ([5, 25], 1)
    assert report.notes == [
        "1 lost messages are not sent again: whether their effect is there could not be read"
    ]
    bench.connection.execute("ALTER TABLE old_letters RENAME TO letters")
    wrong = audit(bench).wrong
    assert [each["outbox_id"] for each in wrong["no_effect"]["examples"]] == [14]
    assert [each["outbox_id"] for each in wrong["unclaimed_effect"]["examples"]] == [25]
    assert "missing" not in wrong


def test_an_effect_of_what_python_cannot_hold_is_altered(bench: Bench) -> None:
    bench.connection.execute(
        "ALTER TABLE notes ADD never timestamp; UPDATE notes SET never = 'infinity';"
        "ALTER TABLE notes DROP note; ALTER TABLE notes RENAME never TO note"
    )
    report = audit(bench)
    assert {kind: each["count"] for kind, each in report.wrong.items()} == {"altered_effect": ROWS}
    assert report.wrong["altered_effect"]["examples"][0]["fields"] == ["book", "note"]


def test_a_repair_that_is_refused_hides_nothing_of_what_was_found(bench: Bench) -> None:
    lose(bench, 5)
    bench.connection.execute("ALTER TABLE outbox ADD CONSTRAINT once CHECK (resend_of IS NULL)")
    report = audit(bench, repair_as="ann")
    assert (missing(report), report.repaired) == ([5], 0)
    [note] = report.notes
    assert note.startswith("5 to 5 are not sent again: PostgreSQL refuses it: CheckViolation (")
    assert bench.query("SELECT wrong FROM outbox_audits") == [(1,)]
    assert bench.query("SELECT count(*) FROM outbox_actions") == [(0,)]
