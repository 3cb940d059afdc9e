"""What audits looked at: never a hole that a later one passes over, and one audit at a time."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event

import psycopg
import pytest
from click.testing import CliRunner

from streams.audit import Report, examine, session, waiting
from streams.broker.consumers import ConsumerGroup
from streams.cli import cli
from streams.database import locks, query
from streams.errors import ServiceUnreachable
from tests.fixtures.listed import ListedTopics
from tests.fixtures.simulation import Bench
from tests.integration.audit.three_ranges import ROWS, WIDTH, audit, lose, missing


@pytest.mark.parametrize("hole", [1, 11])
def test_a_hole_between_the_ranges_is_looked_at_and_all_that_is_behind_it(
    bench: Bench, hole: int
) -> None:
    lose(bench, 5)
    lose(bench, 15)
    lose(bench, 25)
    assert missing(audit(bench, full=True)) == [5, 15, 25]
    assert missing(audit(bench)) == [5, 15, 25]
    # As a full audit leaves it that began anew beside another one, and was ended.
    bench.connection.execute("DELETE FROM outbox_audit_ranges WHERE first_id = %s", [hole])
    bench.connection.execute("DELETE FROM outbox_audit_left WHERE outbox_id >= %s", [hole])
    report = audit(bench)
    assert missing(report) == [5, 15, 25]
    assert report.notes[-1:] == [f"ids from {hole} on are looked at again: a range was forgotten"]
    report = audit(bench)
    assert (missing(report), report.notes) == ([5, 15, 25], [])
    assert bench.query("SELECT first_id, last_id FROM outbox_audit_ranges ORDER BY 1") == [
        (1, 10),
        (11, 20),
        (21, 30),
    ]


def test_what_retention_emptied_is_no_hole(bench: Bench) -> None:
    audit(bench, full=True)
    bench.connection.execute("DELETE FROM outbox_audit_ranges WHERE first_id = 11")
    bench.connection.execute(
        "INSERT INTO outbox_retired (first_id, last_id, messages, kept, tables)"
        " VALUES (11, 20, 10, 0, '{}')"
    )
    report = audit(bench)
    assert (report.first, report.notes, report.wrong) == (31, [], {})


def test_two_audits_at_once_take_turns(bench: Bench) -> None:
    """A full one begins while the other has read what was looked at."""
    lose(bench, 5)
    bench.raise_floor(10)
    assert missing(audit(bench, full=True)) == [5]
    bench.raise_floor(ROWS)
    waits, words = Event(), list[str]()
    full: list[Future[Report]] = []

    def told(holder: str) -> None:
        words.append(holder)
        waits.set()

    with ThreadPoolExecutor() as pool:

        def meanwhile(done: int, total: int) -> None:
            if not full:
                full.append(pool.submit(audit, bench, full=True, waits=told))
                assert waits.wait(30), "it goes on beside the first"

        assert missing(audit(bench, advance=meanwhile)) == [5]
        assert missing(full[0].result(60)) == [5]
    [word] = words
    assert "another audit is under way (outbox-streams audit " in word
    assert missing(audit(bench)) == [5]


def test_who_waits_for_another_audit_says_for_which(
    bench: Bench, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database)
    with psycopg.connect(database, application_name="outbox-streams audit 7@there") as other:
        other.execute(query("lock_alone"), {"lock": locks.AUDIT})
        # A session that ends, however it does, lets the next one begin.
        monkeypatch.setattr(session, "sleep", lambda seconds: other.close())
        result = CliRunner().invoke(cli, ["audit", "--patience", "0"])
    assert result.stderr == (
        "streams: another audit is under way (outbox-streams audit 7@there): waiting for its end\n"
    )
    assert "30 messages looked at" in result.stdout


def test_one_lost_message_behind_a_floor_that_stands_still_is_named(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open transaction holds the floor; what is behind it is published and persisted."""
    monkeypatch.setattr(waiting, "WIDTH", WIDTH)
    bench.query("UPDATE relay_position SET floor = 0 RETURNING name")
    lose(bench, 25)
    again = bench.resend(7)  # of one that is persisted: nothing waits for it
    report = audit(bench, age=0.0)
    unpublished = report.wrong["unpublished"]
    assert [(each["outbox_id"], unpublished["count"]) for each in unpublished["examples"]] == [
        (25, 1)
    ], again
    # Those that nobody has published at all: as many as a report counts, and no more are asked for.
    monkeypatch.setattr(waiting, "MOST", 5)
    bench.connection.execute("DELETE FROM notes; DELETE FROM outbox_state")
    unpublished = audit(bench, age=0.0).wrong["unpublished"]
    assert [each["outbox_id"] for each in unpublished["examples"]] == [1, 2, 3, 4, 5]


def test_replays_that_wait_for_workers_hide_no_lost_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor a conversation that is stuck: more of them than one look takes."""
    monkeypatch.setattr(examine, "OPEN", 2)
    bench.connection.execute(
        "UPDATE outbox SET topic = 'away' WHERE id <= 8;"
        " INSERT INTO outbox (biz_type, topic, key, payload, resend_of)"
        " SELECT biz_type, topic, key, payload, id FROM outbox WHERE id IN (1, 2, 3, 4, 9);"
        " UPDATE outbox_state SET status = 'replaying', applied = NULL, arrived = outbox_id,"
        "  source_id = o.id, topic = o.topic, key = o.key"
        " FROM outbox AS o WHERE o.resend_of = outbox_id;"
        " DELETE FROM notes WHERE outbox_id IN (1, 2, 3, 4, 9)"
    )
    bench.raise_floor(ROWS + 5)
    report = audit(bench)
    assert [each["outbox_id"] for each in report.wrong["lost_replay"]["examples"]] == [9]
    assert "unread" not in report.wrong
    # Those of a topic that nobody reads would be on their way for ever: in time they are told of.
    group = ConsumerGroup("books", members=1, settled=True, partitions={}, assigned={})
    monkeypatch.setattr(ListedTopics, "group", lambda _: group)
    for full in (True, False):
        unread = audit(bench, full=full, age=0.0).wrong["unread"]
        assert [each["outbox_id"] for each in unread["examples"]] == [1, 2, 3, 4]
        assert [each["source"] for each in unread["examples"]] == [ROWS + n for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("most", [2, 8])
def test_unread_messages_of_one_topic_hide_nothing_of_another(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """More of them than make a backlog; nobody consumes that topic any more."""
    monkeypatch.setattr(examine, "BACKLOG", 3)
    monkeypatch.setattr(waiting, "MOST_UNREAD", most)
    group = ConsumerGroup("books", members=1, settled=True, partitions={}, assigned={})
    monkeypatch.setattr(ListedTopics, "group", lambda _: group)
    bench.connection.execute("UPDATE outbox SET topic = 'away' WHERE id <= 8")
    for outbox_id in (1, 2, 3, 4, 5, 6, 7, 8, 15, 25):
        lose(bench, outbox_id)
    bench.connection.execute("UPDATE outbox SET topic = 'gone' WHERE id = 15")
    for full in (True, False):
        # On their way, as far as anybody knows: the range is not settled, the rest is looked at.
        report = audit(bench, full=full)
        assert (missing(report), set(report.wrong), report.until) == ([25], {"missing"}, 0)
        assert report.notes == [
            "messages after 0 are looked at again next time: the workers are behind"
        ]
        assert report.messages == ROWS
    report = audit(bench, age=0.0)
    assert missing(report) == [25]
    assert report.wrong["unread"]["count"] == most + 1
    assert [each["topic"] for each in report.wrong["unread"]["examples"][:2]] == ["away", "gone"]
    # Told of, all of them: the ranges are settled, and they are left.
    assert (report.until, report.left) == ((ROWS, 10) if most == 8 else (0, 0))
    again = audit(bench, age=0.0)
    assert (again.wrong, again.left) == (report.wrong, report.left)


def test_no_third_audit_waits_and_the_second_does_not_for_ever(
    bench: Bench, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setattr(session, "LONGEST_WAIT", -1.0)

    def refused() -> str:
        arguments = ["audit", "--patience", "0"]
        error = CliRunner().invoke(cli, arguments, standalone_mode=False).exception
        assert isinstance(error, ServiceUnreachable)
        return str(error)

    with (
        psycopg.connect(database, application_name="outbox-streams audit 7@there") as stopped,
        psycopg.connect(database) as waiting,
    ):
        stopped.execute(query("lock_alone"), {"lock": locks.AUDIT})
        assert "another audit (outbox-streams audit 7@there) does not end" in refused()
        waiting.execute(query("lock_alone"), {"lock": locks.NEXT_AUDIT})
        assert refused() == (
            "another audit is under way (outbox-streams audit 7@there), and the next one waits for"
            " its end already"
        )
