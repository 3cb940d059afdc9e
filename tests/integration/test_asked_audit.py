"""An audit that somebody asked for on a page: done by its own report, lost when nobody makes it."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import NullPool

from streams.database import locks, query, sync_engine
from streams.operate import acts

ASKED = """
INSERT INTO outbox_actions (at, who, act, what)
VALUES (now() - %s * interval '1 minute', 'amy', 'audit', jsonb_build_object('full', %s::boolean))
"""
ENDED = """
INSERT INTO outbox_audits (at, seconds, complete, messages, wrong, report)
VALUES (now(), %s, %s, 1, 0, '{}')
"""


@pytest.fixture
def other(database: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


def state(database: str) -> str:
    with sync_engine(database, poolclass=NullPool).connect() as connection:
        asked = acts.asked_audit(connection)
    assert asked is not None
    return asked.state


@pytest.mark.parametrize(
    ("full", "seconds", "complete", "expected"),
    [
        (False, 30, False, "done"),
        (False, 90, False, "running"),  # it began before anybody asked
        (True, 30, False, "running"),  # it looked at less
        (True, 30, True, "done"),
        (False, 30, True, "done"),
    ],
)
def test_it_is_done_when_one_that_began_since_has_seen_as_much(
    database: str,
    other: psycopg.Connection,
    full: bool,
    seconds: int,
    complete: bool,
    expected: str,
) -> None:
    other.execute(ASKED, (1, full))
    assert state(database) == "running"
    other.execute(ENDED, (seconds, complete))
    assert state(database) == expected


def test_it_is_lost_after_half_an_hour_unless_it_waits_for_its_turn(
    database: str, other: psycopg.Connection
) -> None:
    other.execute(ASKED, (40, True))
    other.execute(query("lock_alone"), {"lock": locks.AUDIT})
    assert state(database) == "running"
    other.execute(query("lock_give"), {"lock": locks.AUDIT})
    assert state(database) == "lost"
