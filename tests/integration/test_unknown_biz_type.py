"""A message whose biz_type this worker does not know waits for one that does.

Nobody is charged, nobody overtakes it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy.ext.asyncio import AsyncConnection

from streams import Batch
from streams.audit.session import Session
from streams.cli import cli
from streams.database import migrate
from streams.registry import Registry
from streams.worker.driver.runs import Run
from streams.worker.run.persister import Persister
from tests.fixtures.listed import Record
from tests.fixtures.workbench import SYSTEM, TOPIC, Note, Workbench, save

DAY, MINUTES = 86_400.0, 600.0


class Old:
    """A worker that was not deployed again.

    It consumes the topic, and knows none of its biz_types.
    """

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self.worker = Persister(
            bench.settings, Registry({}, {TOPIC: SYSTEM} if bench.envelopes else {})
        )

    def persist(self, run: Run) -> None:
        """Work this run until it is done."""
        assert self._bench.run(self.worker.persist(run)) is not None

    def wake(self, *books: str) -> None:
        """A wake-up call for these conversations."""
        wake(self._bench, self.worker, *books)


def wake(bench: Workbench, worker: Persister, *books: str) -> None:
    """A wake-up call, without any time having passed."""
    run = Run(TOPIC, 0, [Record(0, 0, book.encode(), b"", [], 0) for book in books])
    assert bench.run(worker.retry(run, TOPIC, books)) is not None


@pytest.fixture(params=[False, True], ids=["outbox", "envelopes"])
def bench(database: str, request: pytest.FixtureRequest) -> Iterator[Workbench]:
    with Workbench(database, envelopes=request.param) as found:
        found.query(
            "INSERT INTO outbox_biz_types (biz_type, topic, max_bytes)"
            " VALUES ('note_added', %s, 1000)",
            TOPIC,
        )
        yield found


@pytest.fixture
def old(bench: Workbench) -> Iterator[Old]:
    found = Old(bench)
    yield found
    bench.run(found.worker.database.close())


def table(bench: Workbench) -> str:
    return "outbox_foreign" if bench.envelopes else "outbox_state"


def statuses(bench: Workbench) -> list[tuple[Any, ...]]:
    return bench.query(
        f"SELECT status, attempts, error_code FROM {table(bench)} ORDER BY outbox_id"
    )


def deadline(bench: Workbench) -> float:
    """Seconds until the first that waits gives up."""
    [(seconds,)] = bench.query(
        f"SELECT extract(epoch FROM min(next_retry_at) - now())::float FROM {table(bench)}"
        " WHERE status = 'retrying'"
    )
    return float(seconds)


def pass_deadline(bench: Workbench) -> None:
    bench.query(f"UPDATE {table(bench)} SET next_retry_at = now() WHERE status = 'retrying'")


def test_it_waits_with_its_conversation_and_goes_on_in_order_when_a_worker_knows_it(
    bench: Workbench, old: Old
) -> None:
    run = bench.send("a", "b", "c", book="x")
    old.persist(run)
    assert statuses(bench) == [
        ("retrying", 0, "biz_type"),
        ("parked", 0, None),
        ("parked", 0, None),
    ]
    assert deadline(bench) == pytest.approx(MINUTES if bench.envelopes else DAY, abs=60)
    old.wake("x")
    assert [status for status, *_ in statuses(bench)] == ["retrying", "parked", "parked"]
    wake(bench, bench.worker, "x")
    assert [status for status, *_ in statuses(bench)] == ["consumed"] * 3
    assert bench.saved() == ["a", "b", "c"]


def test_a_later_message_that_a_worker_knows_does_not_overtake_it(
    bench: Workbench, old: Old
) -> None:
    old.persist(bench.send("a", book="x"))
    bench.persist(bench.send("b", book="x"))
    assert bench.saved() == []
    assert [status for status, *_ in statuses(bench)] == ["retrying", "parked"]
    wake(bench, bench.worker, "x")
    assert bench.saved() == ["a", "b"]


@pytest.mark.parametrize("bench", [True], ids=["envelopes"], indirect=True)
@pytest.mark.parametrize("key", [b"other", b'"x"', b""], ids=["a user", "JSON", "none"])
def test_what_was_stored_under_its_records_key_is_taken_under_it_by_a_worker_that_knows_it(
    bench: Workbench, old: Old, key: bytes
) -> None:
    """The second one was asked for by the payload's conversation.

    It waited for ever, and was woken ten times a second.
    """
    name = key.decode()
    old.persist(bench.send("a", "b", book="x", key=key))
    assert [status for status, *_ in statuses(bench)] == ["retrying", "parked"]
    wake(bench, bench.worker, name)
    wake(bench, bench.worker, name)
    assert bench.saved() == ["a", "b"]
    assert bench.run(bench.worker.all_heads(TOPIC, [0])) == []


@pytest.mark.parametrize("bench", [True], ids=["envelopes"], indirect=True)
def test_what_fails_then_waits_where_it_waited_and_its_handler_gets_the_payloads_conversation(
    bench: Workbench, old: Old
) -> None:
    keys: list[str] = []

    async def fail(messages: Batch[Note], db: AsyncConnection) -> None:
        keys.extend(message.key for message in messages)
        if messages[0].payload.note == "a" and len(keys) == 1:
            raise ValueError
        await save(messages, db)

    old.persist(bench.send("a", "b", book="x", key=b"other"))
    bench.handler = fail
    wake(bench, bench.worker, "other")
    assert bench.query("SELECT key, status FROM outbox_foreign ORDER BY outbox_id") == [
        ("other", "retrying"),
        ("other", "parked"),
    ]
    bench.wake("other")
    assert bench.saved() == ["a", "b"]
    assert set(keys) == {"x"}


def test_nobody_is_woken_for_it_before_its_deadline_but_an_owner_that_knows_it(
    bench: Workbench, old: Old
) -> None:
    old.persist(bench.send("a", "b"))
    for head in bench.run(old.worker.all_heads(TOPIC, [0])):
        assert head.due is not None
        assert head.due > time.time() + MINUTES / 2
    assert [head.due for head in bench.run(bench.worker.all_heads(TOPIC, [0]))] == [0.0, 0.0]
    assert [head.due for head in bench.run(bench.worker.heads(TOPIC, ["book of a"]))] == [0.0]


def test_at_its_deadline_it_is_dead_and_its_conversation_goes_on(
    bench: Workbench, old: Old
) -> None:
    old.persist(bench.send("a", book="x"))
    bench.query(f"UPDATE {table(bench)} SET updated_at = now() - interval '2 days'")
    bench.persist(bench.send("b", book="x"))
    pass_deadline(bench)
    old.wake("x")
    # What was parked a moment ago has a patience of its own.
    assert statuses(bench) == [("dead", 0, "biz_type"), ("retrying", 0, "biz_type")]
    wake(bench, bench.worker, "x")
    assert bench.saved() == ["b"]


def test_messages_that_waited_parked_for_that_long_do_not_wait_as_long_again(
    bench: Workbench, old: Old
) -> None:
    old.persist(bench.send("a", "b", "c", book="x"))
    bench.query(f"UPDATE {table(bench)} SET updated_at = now() - interval '2 days'")
    pass_deadline(bench)
    old.wake("x")
    assert {status for status, *_ in statuses(bench)} == {"dead"}


def test_a_second_delivery_changes_nothing_and_a_worker_that_knows_it_takes_it(
    bench: Workbench, old: Old
) -> None:
    run = bench.send("a")
    old.persist(run)
    before = deadline(bench)
    old.persist(Run(TOPIC, 0, run.records))
    assert statuses(bench) == [("retrying", 0, "biz_type")]
    assert deadline(bench) <= before
    bench.persist(Run(TOPIC, 0, run.records))
    assert bench.saved() == ["a"]


def test_a_retry_that_comes_to_a_worker_of_an_older_version_is_not_charged(
    bench: Workbench, old: Old
) -> None:
    bench.query("ALTER TABLE notes ADD CONSTRAINT no_a CHECK (note <> 'a')")
    run = bench.send("a")
    bench.persist(run)
    assert statuses(bench) == [("retrying", 1, "23514")] or statuses(bench)[0][0] == "dead"
    bench.query(
        f"UPDATE {table(bench)} SET status = 'retrying', attempts = 2, error_code = 'P0001'"
    )
    pass_deadline(bench)
    if not bench.envelopes:
        bench.query("UPDATE outbox_state SET topic = %s, key = 'book of a', arrived = 1", TOPIC)
    else:
        bench.query("UPDATE outbox_foreign SET open = true, arrived = 1")
    old.wake("book of a")
    assert statuses(bench) == [("retrying", 2, "biz_type")]
    bench.query("ALTER TABLE notes DROP CONSTRAINT no_a")
    wake(bench, bench.worker, "book of a")
    assert bench.saved() == ["a"]


def test_where_nobody_registered_it_it_waits_ten_minutes(bench: Workbench, old: Old) -> None:
    bench.query("DELETE FROM outbox_biz_types WHERE biz_type = 'note_added'")
    old.persist(bench.send("a"))
    assert statuses(bench) == [("retrying", 0, "biz_type")]
    assert deadline(bench) == pytest.approx(MINUTES, abs=60)


def test_a_retired_one_is_dead_at_once(
    bench: Workbench, old: Old, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", bench.url)
    old.persist(bench.send("a"))
    done = CliRunner().invoke(
        cli, ["biz-types", "retire", "note_added", "--why", "gone"], catch_exceptions=False
    )
    assert done.output == "note_added is retired, 1 messages waited\n"
    old.wake("book of a")
    old.persist(bench.send("b"))
    assert statuses(bench) == [("dead", 0, "biz_type")] * 2
    with pytest.raises(psycopg.Error, match="biz_type 'note_added' is retired since") as refused:
        bench.query("SELECT outbox_enqueue('note_added', 'x', '{}')")
    assert refused.value.sqlstate == "22023"
    listed = CliRunner().invoke(cli, ["biz-types", "list"], catch_exceptions=False).output
    assert "note_added" in listed
    done = CliRunner().invoke(
        cli, ["biz-types", "retire", "note_added", "--undo"], catch_exceptions=False
    )
    assert done.output == "note_added is no longer retired\n"
    bench.query("SELECT outbox_enqueue('note_added', 'x', '{}')")


def test_what_was_retired_by_mistake_waits_on_when_no_worker_has_looked(
    bench: Workbench, old: Old, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was due, which looked like the end of its patience: it died, though nothing is retired."""
    monkeypatch.setenv("DATABASE_URL", bench.url)
    old.persist(bench.send("a"))
    for how, said in (
        ((), "retired, 1 messages waited"),
        (("--undo",), "retired, 1 messages wait on"),
    ):
        command = ["biz-types", "retire", "note_added", *how]
        assert CliRunner().invoke(cli, command, catch_exceptions=False).output.endswith(f"{said}\n")
    old.wake("book of a")
    assert statuses(bench) == [("retrying", 0, "biz_type")]
    patience = MINUTES if bench.envelopes else DAY
    assert deadline(bench) == pytest.approx(patience, abs=60)
    wake(bench, bench.worker, "book of a")
    assert bench.saved() == ["a"]


def test_status_and_audit_say_so_from_the_first_moment(
    bench: Workbench, old: Old, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", bench.url)
    assert "note_added" not in CliRunner().invoke(cli, ["status"]).output
    old.persist(bench.send("a", "b"))
    told = CliRunner().invoke(cli, ["status"])
    assert told.exit_code == 1
    assert "2 messages wait since 20" in told.output
    assert "for a worker that knows biz_type 'note_added': deploy one before 20" in told.output
    with migrate.connection(bench.settings) as connection:
        [(biz_type, count, *_)] = Session(connection).rows("unknown_biz_types")
    assert (biz_type, count) == ("note_added", 2)


def test_one_that_is_not_registered_cannot_be_retired(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database)
    refused = CliRunner().invoke(cli, ["biz-types", "retire", "nope"])
    assert (
        str(refused.exception)
        == "biz_type 'nope' is not registered: expected one of chat_history_persist"
    )
