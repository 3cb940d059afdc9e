"""A person's text leaves the outbox, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from threading import Thread

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import NullPool

from streams import operate
from streams.cli import cli
from streams.database import sync_engine, transacted
from streams.errors import ServiceUnreachable, UsageError
from streams.operate import erase as erasing
from tests.fixtures.aged import work
from tests.fixtures.killed import wait_until
from tests.fixtures.simulation import Bench
from tests.fixtures.stage import OPERATOR, Stage

MARKED = "SELECT id FROM outbox WHERE payload::text LIKE '{\"$erased\"%' ORDER BY id"


@pytest.fixture
def stage(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """Settled, dead and pending messages of two conversations."""
    monkeypatch.setenv("DATABASE_URL", database)
    with Bench(database) as bench:
        stage = Stage(bench)
        for key in ("a", "a", "d", "a"):
            stage.insert(bench.connection, key, "plain")
        bench.handler.faults[stage.name()] = "reject"
        stage.send(stage.committed())
        for number in stage.log.partitions:
            run = stage.next_run(number, 100)
            assert run is not None
            stage.persist(0, run)
        stage.insert(bench.connection, "a", "plain")
        yield stage


def erase(*arguments: str) -> Result:
    """`streams erase`."""
    return CliRunner().invoke(cli, ["erase", "--why", "a request", *arguments])


@pytest.mark.parametrize("moment", ["infinity", "-infinity", "20000-01-01", "9999-12-31"])
def test_a_row_whose_time_is_no_time_is_erased_too(stage: Stage, moment: str) -> None:
    stage.bench.query(f"UPDATE outbox SET created_at = '{moment}' RETURNING 1")
    said = erase("--key", "a", "--force")
    assert (said.exit_code, said.exception) == (0, None)
    assert said.stdout.startswith("4 rows erased")


def test_a_conversations_settled_text_is_erased_and_the_audit_agrees(stage: Stage) -> None:
    query = stage.bench.query
    settled = [
        row[0]
        for row in query(
            "SELECT id FROM outbox JOIN outbox_state ON outbox_id = id"
            # Fmt: skip
            " WHERE outbox.key = 'a' AND status = 'consumed' ORDER BY id"
        )
    ]
    before = query("SELECT id, biz_type, topic, key, created_at FROM outbox ORDER BY id")
    said = erase("--key", "a", "--dry-run")
    assert said.stdout.startswith("2 rows would be erased")
    assert query(MARKED) == []
    said = erase("--key", "a")
    assert said.exit_code == 1
    assert said.stdout.startswith("2 rows erased")
    # Kafka keeps a segment, of a week at most, until its newest record is too old.
    [(last,)] = query("SELECT max(created_at) FROM outbox WHERE id = ANY(%s)", settled)
    until = last + timedelta(days=14)
    assert f"topic notes may hold the records until {until:%Y-%m-%d %H:%M} UTC" in said.stdout
    assert "2 messages are not settled and were left" in said.stdout
    assert [row[0] for row in query(MARKED)] == settled
    assert query("SELECT id, biz_type, topic, key, created_at FROM outbox ORDER BY id") == before
    assert query("SELECT act, what -> 'ids', why FROM outbox_actions") == [
        ("erase", settled, "a request")
    ]
    stage.bench.raise_floor(4)
    report = stage.bench.audit(stage.log)
    assert not report.wrong, report.wrong
    assert erase("--key", "a").stdout.startswith("0 rows erased")


AGAIN = (
    "INSERT INTO outbox (biz_type, topic, key, payload, resend_of) SELECT biz_type, topic, key,"
    " %s, id FROM outbox WHERE id = %s RETURNING id"
)


def test_it_says_where_the_text_may_be_though_nothing_is_found(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is old is in the archive alone."""
    assert erase("--key", "z").stdout == "0 rows erased\n"
    monkeypatch.setenv("STREAMS_OUTBOX__ARCHIVE", "/a/secret/place")
    for name in ("outbox_restored_0", "outbox_state_restored_0", "outbox_restored_by_me"):
        stage.bench.connection.execute(f"CREATE TABLE {name} ()".encode())
    assert erase("--key", "z").stdout.splitlines() == [
        "0 rows erased",
        "the archive holds what went there before: this does not reach into it",
        "what was restored may hold it: outbox_restored_0, outbox_state_restored_0",
    ]


@pytest.mark.parametrize("found_by", ["first", "edited"])
def test_a_message_is_found_by_any_of_its_rows_and_all_of_them_are_erased(
    stage: Stage, found_by: str
) -> None:
    """It was replayed with another text: the value is in one of them only."""
    [(outbox_id, note)] = stage.bench.query(
        "SELECT id, payload ->> 'note' FROM outbox WHERE key = 'a' ORDER BY id LIMIT 1"
    )
    [(again,)] = stage.bench.query(AGAIN, '{"book": "a", "note": "edited"}', outbox_id)
    assert again > outbox_id + 1
    value = note if found_by == "first" else "edited"
    said = erase("--where", f"plain.note={value}")
    assert (said.exit_code, said.stdout.startswith("2 rows erased")) == (0, True)
    assert stage.bench.query(MARKED) == [(outbox_id,), (again,)]


def test_what_sent_a_message_again_that_is_gone_is_erased(stage: Stage) -> None:
    """A dead letter of long ago was replayed and settled, and its range emptied once more."""
    [(outbox_id,)] = stage.bench.query("SELECT min(id) FROM outbox WHERE key = 'a'")
    [(again,)] = stage.bench.query(AGAIN, '{"book": "a", "note": "again"}', outbox_id)
    stage.bench.query("DELETE FROM outbox_state WHERE outbox_id = %s RETURNING 1", outbox_id)
    stage.bench.query("DELETE FROM outbox WHERE id = %s RETURNING 1", outbox_id)
    erase("--key", "a")
    assert (again,) not in stage.bench.query(MARKED)
    stage.bench.query(
        "INSERT INTO outbox_retired (first_id, last_id, messages, kept, tables)"
        " VALUES (%s, %s, 1, 0, '{}')"
        " RETURNING 1",
        outbox_id,
        outbox_id,
    )
    erase("--key", "a")
    assert (again,) in stage.bench.query(MARKED)


def test_what_is_kept_of_other_systems_messages_goes_too_once_they_are_settled(
    stage: Stage,
) -> None:
    stage.bench.connection.execute(
        "INSERT INTO outbox_foreign (source, outbox_id, status, topic, key, payload, replaced)"
        " VALUES ('seed', 1, 'consumed', 't', 'z', NULL, 'text'),"
        " ('seed', 2, 'dead', 't', 'z', 'text', NULL),"
        " ('seed', 3, 'consumed', 't', 'y', NULL, 'text')"
    )
    said = [erase("--key", "z", "--dry-run"), erase("--key", "z")]
    left = (
        "\ntopics of other systems hold their records for as long as those say"
        "\nwhat agents wrote, backups, and PostgreSQL's log until it is recycled hold it too"
        "\n1 messages of other systems are not settled and were left\n"
    )
    assert [each.stdout for each in said] == [
        f"0 rows would be erased, 1 of other systems{left}",
        f"0 rows erased, 1 of other systems{left}",
    ]
    assert [each.exit_code for each in said] == [1, 1]
    assert stage.bench.query(
        "SELECT outbox_id, payload, replaced FROM outbox_foreign ORDER BY outbox_id"
    ) == [(1, None, None), (2, "text", None), (3, None, "text")]


def test_other_systems_messages_are_looked_into_by_their_fields(stage: Stage) -> None:
    """The key of one that came before its biz_type was known is its record's."""
    stage.bench.connection.execute(
        "INSERT INTO outbox_biz_types (biz_type, topic, max_bytes, key_field)"
        " VALUES ('plain', 't', 1000, 'book')"
    )
    stage.bench.connection.execute(
        "INSERT INTO outbox_foreign"
        " (source, outbox_id, status, topic, biz_type, key, payload, replaced)"
        " VALUES"
        " ('seed', 1, 'discarded', 't', 'plain', 'r', '{\"book\": \"z\", \"note\": 7}', NULL),"
        " ('seed', 2, 'dead', 't', 'plain', 'r', '{\"book\": \"z\", \"note\": 7.0}', NULL),"
        " ('seed', 3, 'discarded', 't', 'plain', 'y', '{\"book\": \"y\", \"note\": 8}',"
        '  \'"{\\"book\\": \\"y\\", \\"note\\": 7}"\'),'
        " ('seed', 4, 'discarded', 't', 'other', 'z', '{\"note\": 7}', NULL),"
        " ('seed', 5, 'dead', 't', 'plain', 'x', 'a text', NULL),"
        " ('tree', 1, 'dead', 't', 'plain', 'y', '{\"book\": \"y\", \"note\": 7}', NULL)"
    )

    def texts() -> list[tuple[str, int]]:
        return stage.bench.query(
            "SELECT source, outbox_id FROM outbox_foreign WHERE payload IS NOT NULL"
            " OR replaced IS NOT NULL ORDER BY 1, 2"
        )

    said = erase("--where", "plain.note=7")
    assert said.exit_code == 1
    assert said.stdout.startswith("0 rows erased, 2 of other systems\n")
    assert said.stdout.endswith(
        "1 messages of other systems are not settled and were left\n"
        "1 messages of other systems cannot be looked into and were left, for example seed:5\n"
    )
    assert texts() == [("seed", 2), ("seed", 4), ("seed", 5), ("tree", 1)]
    # An empty value is no missing field.
    for field in ("nowhere", "book"):
        assert erase("--where", f"other.{field}=").stdout.startswith("0 rows erased\n")
    assert texts() == [("seed", 2), ("seed", 4), ("seed", 5), ("tree", 1)]
    # By the key of the payload as well as that of the record, where it is no other biz_type's.
    said = erase("--key", "z")
    assert said.stdout.startswith("0 rows erased, 1 of other systems\n")
    assert said.stdout.endswith("\n1 messages of other systems are not settled and were left\n")
    assert texts() == [("seed", 2), ("seed", 5), ("tree", 1)]


def test_a_dead_message_that_was_erased_is_replayed_by_nobody_but_with_another_text(
    stage: Stage,
) -> None:
    assert erase("--where", "plain.book=a", "--force").exit_code == 0
    [dead] = operate.plan(stage.bench.operators, operate.Choice())
    with pytest.raises(
        UsageError, match=f"message {dead} was erased and cannot be replayed: nothing was done"
    ):
        list(operate.replay(stage.bench.operators, [dead], OPERATOR, operate.Choice()))
    text = b'{"book": "a", "note": "another"}'
    operate.edit(stage.bench.operators, int(dead), text, stage.bench.registry, 900_000, OPERATOR)
    assert stage.bench.query("SELECT status FROM outbox_state WHERE outbox_id = %s", dead) == [
        ("replaying",)
    ]


def unmarked(stage: Stage, key: str) -> list[int]:
    """Rows of this conversation that hold their text."""
    rows = stage.bench.query(
        "SELECT id FROM outbox WHERE key = %s AND payload::text NOT LIKE '{\"$erased\"%%'", key
    )
    return [row[0] for row in rows]


def test_a_copy_that_is_made_while_it_goes_through_is_erased_too(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasing, "WINDOW", 2)
    [dead] = operate.plan(stage.bench.operators, operate.Choice())
    assert int(dead) > 2  # in a later window than the first
    with sync_engine(stage.bench._url, poolclass=NullPool).connect() as connection:
        steps = erasing.erase(connection, erasing.Person(key="a"), OPERATOR)
        next(steps)
        assert unmarked(stage, "a") == [2, 4, 5]
        list(operate.replay(stage.bench.operators, [dead], OPERATOR, operate.Choice()))
        stage.bench.handler.faults.clear()
        work(stage)
        *_, erased = steps
    assert unmarked(stage, "a") == [5]  # which waited for the dead one, and is left and said
    assert (erased.ids, erased.open, erased.share) == ([1, 2, int(dead), 6], {5}, 1.0)


def test_a_copy_that_is_made_beside_an_erasure_by_force_is_erased_too(stage: Stage) -> None:
    [dead] = operate.plan(stage.bench.operators, operate.Choice())
    waits = (
        "SELECT EXISTS (SELECT FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database())"
        " OR EXISTS (SELECT FROM outbox_actions WHERE act = 'erase')"
    )
    said: list[Result] = []
    with stage.bench.another() as other:
        other.execute("SELECT FROM outbox_state WHERE outbox_id = %s FOR UPDATE", [int(dead)])
        other.execute(
            "INSERT INTO outbox (biz_type, topic, key, payload, resend_of)"
            " SELECT biz_type, topic, key, payload, id FROM outbox WHERE id = %s",
            [int(dead)],
        )
        thread = Thread(target=lambda: said.append(erase("--key", "a", "--force")))
        thread.start()
        wait_until(stage, waits)
        other.commit()
        thread.join(30)
    assert said[0].stdout.startswith("5 rows erased")
    assert unmarked(stage, "a") == []


def test_an_erasure_by_force_that_meets_a_worker_crosswise_begins_the_window_again(
    stage: Stage,
) -> None:
    """A worker locks the messages of a run in an order of its own."""
    ids = [
        row[0]
        for row in stage.bench.query(
            "SELECT outbox_id FROM outbox_state JOIN outbox AS o ON o.id = outbox_id"
            " WHERE o.key = 'a' ORDER BY 1"
        )
    ]
    waits = (
        "SELECT EXISTS (SELECT FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database())"
    )
    locked = "SELECT FROM outbox_state WHERE outbox_id = %s FOR UPDATE"
    said: list[Result] = []
    with stage.bench.another() as other:
        other.execute("SET LOCAL deadlock_timeout = '1min'")  # the other one is to give way
        other.execute(locked, [ids[-1]])
        thread = Thread(target=lambda: said.append(erase("--key", "a", "--force")))
        thread.start()
        wait_until(stage, waits)
        other.execute(locked, [ids[0]])
        other.commit()
        thread.join(30)
    assert (said[0].exit_code, said[0].exception) == (0, None)
    assert said[0].stdout.startswith("4 rows erased")
    assert unmarked(stage, "a") == []
    assert len(stage.bench.query("SELECT FROM outbox_actions WHERE act = 'erase'")) == 1


def test_an_erasure_that_others_hold_up_each_time_says_so_and_has_done_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transacted, "PAUSES", (0.01, 0.01))
    monkeypatch.setattr(erasing, "PAUSES", (0.01, 0.01))
    monkeypatch.setenv("PGOPTIONS", "-c lock_timeout=10ms")
    with stage.bench.another() as other:
        other.execute("SELECT FROM outbox_state FOR UPDATE")
        said = erase("--key", "a", "--force")
    assert isinstance(said.exception, ServiceUnreachable)
    assert "in the way 3 times: run it again" in str(said.exception)
    assert stage.bench.query(MARKED) == []
    assert stage.bench.query("SELECT FROM outbox_actions WHERE act = 'erase'") == []


@pytest.mark.parametrize(
    "arguments", [[], ["--key", "a", "--where", "x.y=1"], ["--where", "plain=1"]]
)
def test_whom_it_is_about_has_to_be_said(stage: Stage, arguments: list[str]) -> None:
    result = erase(*arguments)
    assert "expected" in str(result.exception)
    assert stage.bench.query(MARKED) == []


def test_a_field_is_found_in_a_text_that_postgresql_cannot_look_into(stage: Stage) -> None:
    """NUL and half a character are JSON, and no text of PostgreSQL's."""
    texts = (
        r'{"book": "z", "note": "\u0000"}',
        r'{"book": "z", "note": "\ud800"}',
        r'{"book": "\u0000", "note": "z"}',
        r'{"book": "z", "note": "\\u0000"}',
        r'{"book": 7.0, "note": "\u0000"}',
    )
    ids = [stage.bench.insert(stage.bench.connection, "d", "plain", text) for text in texts]
    left = erase("--where", "plain.book=z")
    assert (left.exit_code, left.stdout.splitlines()[0]) == (1, "0 rows erased")
    assert erase("--where", "plain.book=z", "--force").stdout.startswith("3 rows erased")
    assert erase("--where", "plain.book=7.0", "--force").stdout.startswith("1 rows erased")
    assert [row[0] for row in stage.bench.query(MARKED)] == [ids[0], ids[1], ids[3], ids[4]]
