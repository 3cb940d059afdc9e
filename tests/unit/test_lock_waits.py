"""Waiting for locks: whom a line names, and what it keeps to itself."""

from __future__ import annotations

from datetime import UTC, datetime

from streams.database.lock_waits import Blocker


def test_whom_a_migration_waits_for_is_named_as_far_as_it_may_be_seen() -> None:
    since = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
    assert (
        str(Blocker(7, "pg_dump", since, "3/1")) == "pid 7 (pg_dump, since 2026-01-31 12:00:00 UTC)"
    )
    assert str(Blocker(7, None, None, None)) == "pid 7 (without a name)"
    assert str(Blocker(0, None, None, None)) == "a prepared transaction, see pg_prepared_xacts"
