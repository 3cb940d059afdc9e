"""What PostgreSQL refuses an audit is told in one line, and is no verdict."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from streams.audit.effects import Effects
from streams.cli import cli
from streams.database import locks, query
from streams.errors import ServiceUnreachable, StreamsError, UsageError
from streams.web.audit_apart import audit_apart
from tests.conftest import Eventually
from tests.fixtures.simulation import Bench

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
    assert "went away: terminating connection due to administrator command" in str(error)
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
        with pytest.raises(StreamsError, match="went away: terminating connection due to admin"):
            await asked
