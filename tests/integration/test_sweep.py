"""Messages that Kafka lost are sent again by the relay's leader, and nothing else is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from streams.broker import kafka
from streams.broker.partitioner import partition_of
from streams.database import connect
from streams.events import EventType
from streams.operate.faults import faults_of
from streams.operate.look import look
from streams.registry import Agent, Registry
from streams.relay.leader import sweep
from streams.relay.leader.figures import LeaderFigures
from streams.relay.leader.sweep import MOST, Topic
from tests.conftest import Eventually, World
from tests.fixtures.listed import TOPIC, ListedSweep, Record
from tests.fixtures.notes import Notes
from tests.fixtures.simulation import Bench, Note
from tests.fixtures.stage import Stage


def cdc(world: World, folder: Path) -> Notes:
    """Notes in a world whose relay has a slot."""
    world.migrate()
    notes = Notes(world, folder)
    world.environ |= {"STREAMS_RELAY__MODE": "cdc", "STREAMS_RELAY__SWEEP_INTERVAL": "0.3"}
    return notes


async def test_a_lost_record_is_sent_again_and_a_lagging_one_is_not(
    world: World, tmp_path: Path, eventually: Eventually
) -> None:
    notes = cdc(world, tmp_path)
    # Of a topic that nobody consumes any more: more of them than one look takes.
    world.query(
        "INSERT INTO outbox (biz_type, topic, key, payload) SELECT 'old', 'old', 'k', '{}'"
        " FROM generate_series(1, %s)",
        MOST + 1,
    )
    [lost] = notes.enqueue("a", "lost")
    # The slot never sees the row, and it is noted as published: as if its record had been lost on
    # the way.
    world.query(
        "SELECT pg_replication_slot_advance(%s, pg_current_wal_insert_lsn())",
        world.settings.relay.name,
    )
    world.query("UPDATE relay_position SET lsn = pg_current_wal_insert_lsn()")
    world.relay()
    ids = notes.enqueue("a", "a0") + notes.enqueue("b", "b0")
    floor = "SELECT coalesce(max(floor), 0) FROM relay_position"
    await eventually(lambda: world.query(floor)[0][0] >= ids[-1], 60)
    await asyncio.sleep(
        3
    )  # several rounds of the sweep while nobody consumes: nothing may be sent again
    assert world.query("SELECT count(*) FROM outbox WHERE resend_of IS NOT NULL") == [(0,)]
    world.worker()
    await eventually(lambda: notes.all([*ids, lost], "consumed"), 90)
    assert world.query("SELECT resend_of FROM outbox WHERE resend_of IS NOT NULL") == [(lost,)]
    assert notes.saved("a") == ["a0", "lost"]
    assert "messages sent again" in (world.directory / "streams-0.log").read_text()


async def test_a_replay_whose_record_is_lost_is_sent_again_with_its_edit(
    world: World, tmp_path: Path, eventually: Eventually
) -> None:
    notes = cdc(world, tmp_path)
    world.relay()
    world.worker()
    [dead] = notes.enqueue("a", "reject:a0")
    await eventually(lambda: notes.all([dead], "dead"), 60)
    # Below the floor and never published, as after a lost topic; long ago, so that it is overdue.
    world.query(
        "WITH again AS (INSERT INTO outbox (id, biz_type, topic, key, payload, resend_of)"
        " OVERRIDING SYSTEM VALUE"
        ' SELECT 0, biz_type, topic, key, \'{"book": "a", "note": "edited"}\','
        " id FROM outbox WHERE id = %s RETURNING id, topic, key) UPDATE outbox_state"
        " SET status = 'replaying', source_id = 0, topic = again.topic, key = again.key, updated_at"
        " = now() - interval '1 hour', arrived = coalesce(arrived, nextval('outbox_arrived'))"
        " FROM again WHERE outbox_id = %s",
        dead,
        dead,
    )
    behind = notes.enqueue("a", "a1")
    await eventually(lambda: notes.all([dead, *behind], "consumed"), 90)
    assert notes.saved("a") == ["edited", "a1"]


async def test_messages_that_kafka_deleted_unread_are_sent_again_in_order_within_seconds(
    world: World, tmp_path: Path, eventually: Eventually
) -> None:
    notes = cdc(world, tmp_path)
    world.relay()
    # One key: its partition is emptied before anybody has read it, the other one has never held
    # anything.
    texts = [f"a{number}" for number in range(3 * MOST)]
    ids = notes.enqueue("a", *texts)
    floor = "SELECT coalesce(max(floor), 0) FROM relay_position"
    await eventually(lambda: world.query(floor)[0][0] >= ids[-1], 60)
    admin = AdminClient(kafka.client(world.settings))
    emptied = [TopicPartition(notes.topic, number, -1) for number in (0, 1)]
    for future in admin.delete_records(emptied).values():
        future.result(10)
    # Nobody has committed, nobody reads: where the log begins is proof enough.
    resent = "SELECT count(DISTINCT resend_of), count(*) FROM outbox WHERE resend_of IS NOT NULL"
    await eventually(lambda: world.query(resent) == [(len(ids), len(ids))], 60)
    world.worker()
    await eventually(lambda: notes.all(ids, "consumed"), 90)
    assert notes.saved("a") == texts
    assert world.query(resent) == [(len(ids), len(ids))]


async def _rounds(bench: Bench, sweep: ListedSweep, count: int) -> int:
    """So many rounds of one leader; how many messages they sent again."""
    async with await psycopg.AsyncConnection.connect(bench._url, autocommit=True) as connection:
        return sum([await sweep.round(connection) for _ in range(count)])


def test_what_is_lost_once_more_on_its_way_is_sent_once_more_by_the_same_leader(
    database: str,
) -> None:
    """A leader that looks while it is under way does not take it for settled."""
    with Bench(database) as bench:
        stage = Stage(bench)
        lost = stage.insert(bench.connection, "a", "plain")
        bench.raise_floor(lost)
        sweep = ListedSweep(bench.settings, bench.registry, stage.log)
        assert bench.run(_rounds(bench, sweep, 2)) == 1
        assert bench.run(_rounds(bench, sweep, 2)) == 0, "it is under way"
        [again] = bench.query("SELECT id FROM outbox WHERE resend_of = %s", lost)
        # Published, and its record is lost too.
        bench.raise_floor(again[0])
        assert bench.run(_rounds(bench, sweep, 2)) == 1
        resends = "SELECT count(*) FROM outbox WHERE resend_of = %s"
        assert bench.query(resends, lost) == [(2,)]


HEADS = """
WITH heads AS (
    INSERT INTO outbox (biz_type, topic, key, payload)
    SELECT 'plain', %(topic)s, key, '{"book": "b", "note": "n"}'
    FROM unnest(%(keys)s::text[]) AS key
    RETURNING id, topic, key
)
INSERT INTO outbox_state (outbox_id, status, topic, key, arrived, updated_at)
SELECT id, 'parked', topic, key, nextval('outbox_arrived'), now() - interval '1 hour' FROM heads
RETURNING outbox_id
"""


@pytest.mark.parametrize("topic", [TOPIC, "away", "of a newer version"])
def test_conversations_that_wait_for_absent_workers_keep_the_sweep_from_no_lost_replay(
    database: str, monkeypatch: pytest.MonkeyPatch, topic: str
) -> None:
    """Neither those of another partition or topic, nor of one that this relay does not know."""
    monkeypatch.setattr(sweep, "MOST", 2)
    with Bench(database) as bench:
        stage = Stage(bench)
        keys = [key for key in "abcdefghij" if partition_of(key, 2) == 0][:3]
        bench.connection.execute(HEADS, {"topic": topic, "keys": keys})
        [[replayed]] = bench.connection.execute(HEADS, {"topic": TOPIC, "keys": ["d"]}).fetchall()
        source = bench.resend(replayed)
        bench.connection.execute(
            "UPDATE outbox_state SET status = 'replaying', source_id = %s,"
            " updated_at = now() - interval '1 hour' WHERE outbox_id = %s",
            [source, replayed],
        )
        bench.raise_floor(source)
        # Of their partition nobody reads on, while that of the replay was read to its end.
        stage.log.partitions[0].extend([Record(0, 0, None, None, [], 0, 0)] * 5)
        away = EventType("away", "away", "book", Note, "simulation")
        agents = {**bench.registry.agents, "away": Agent(away, bench.handler, "simulation")}
        swept = ListedSweep(bench.settings, Registry(agents), stage.log)
        bench.run(_rounds(bench, swept, 3))
        resent = "SELECT resend_of FROM outbox WHERE resend_of IS NOT NULL AND id > %s"
        assert bench.query(resent, source) == [(replayed,)]
        # It is under way, and not sent once more.
        bench.run(_rounds(bench, swept, 3))
        assert bench.query(resent, source) == [(replayed,)]


REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN RAISE 'a word of theirs' USING ERRCODE = '{state}'; END$$;
CREATE TRIGGER refuse BEFORE INSERT ON outbox FOR EACH ROW WHEN (NEW.resend_of = {id}) EXECUTE
FUNCTION refuse()"""
RESENT = "SELECT resend_of FROM outbox WHERE resend_of IS NOT NULL ORDER BY id"


def test_a_message_that_may_not_be_sent_again_holds_up_its_conversation_alone(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A trigger of the user's own."""
    with Bench(database) as bench:
        stage = Stage(bench)
        ids = [stage.insert(bench.connection, key, "plain") for key in "aabbabd"]
        bench.raise_floor(ids[-1])
        bench.connection.execute(REFUSE.format(id=ids[1], state="P0001").encode())
        leader = ListedSweep(bench.settings, bench.registry, stage.log)
        assert bench.run(_rounds(bench, leader, 3)) == 5
        # Its conversation waits behind it: what comes later must not go first.
        assert bench.query(RESENT) == [(ids[at],) for at in (0, 2, 3, 5, 6)]
        reason = "PostgreSQL refuses it: RaiseException (SQLSTATE P0001)"
        assert leader.waits == [f"message {ids[1]} of topic {TOPIC}: {reason}"]
        [said] = [each for each in caplog.records if "cannot be sent" in each.message]
        assert (said.__dict__["outbox_id"], said.__dict__["error"]) == (ids[1], reason)
        assert "a word of theirs" not in caplog.text
        bench.connection.execute("DROP TRIGGER refuse ON outbox")
        leader._refused[TOPIC].until.clear()  # ten minutes later
        assert bench.run(_rounds(bench, leader, 2)) == 2
        assert bench.query(RESENT)[-2:] == [(ids[1],), (ids[4],)]
        assert leader.waits == []


def test_what_was_set_aside_by_a_clock_that_was_ahead_is_due_when_it_is_right(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It would wait for as long as the clock went back, and its conversation with it."""
    with Bench(database) as bench:
        stage = Stage(bench)
        ids = [stage.insert(bench.connection, key, "plain") for key in "aab"]
        bench.raise_floor(ids[-1])
        ahead = "now() + interval '1 day'"
        bench.connection.execute(
            "INSERT INTO outbox_state (outbox_id, status, attempts, topic, key, arrived, partition,"
            f" next_retry_at, updated_at) SELECT id, CASE WHEN id = {ids[1]} THEN 'parked' ELSE"
            f" 'retrying' END, 1, topic, key, id, 0, CASE WHEN id <> {ids[1]} THEN {ahead} END,"
            f" CASE WHEN id = {ids[2]} THEN now() ELSE {ahead} END FROM outbox".encode()
        )
        bench.connection.execute(
            "INSERT INTO outbox_foreign (source, outbox_id, status, attempts, topic, key, arrived,"
            " open, next_retry_at, updated_at)"
            f" VALUES ('seed', 1, 'retrying', 1, 't', 'a', 1, true, {ahead}, {ahead})".encode()
        )
        leader = ListedSweep(bench.settings, bench.registry, stage.log)
        bench.run(_rounds(bench, leader, 1))
        due = "SELECT outbox_id, due <= now(), since <= now() FROM outbox_open ORDER BY 1"
        # The last one waits for its own moment.
        assert bench.query(due) == [
            (ids[0], True, True),
            (ids[1], None, True),
            (ids[2], False, True),
        ]
        theirs = "SELECT next_retry_at <= now(), updated_at <= now() FROM outbox_foreign"
        assert bench.query(theirs) == [(True, True)]
        said = [each for each in caplog.records if "far ahead" in each.getMessage()]
        assert [each.__dict__["count"] for each in said] == [3]
        bench.run(_rounds(bench, leader, 1))
        assert len([each for each in caplog.records if "far ahead" in each.getMessage()]) == 1


def test_what_is_refused_of_a_clock_that_was_ahead_holds_up_no_lost_message(
    database: str,
) -> None:
    with Bench(database) as bench:
        stage = Stage(bench)
        ahead, lost = [stage.insert(bench.connection, key, "plain") for key in "ab"]
        bench.raise_floor(lost)
        bench.connection.execute(
            "INSERT INTO outbox_state (outbox_id, status, attempts, topic, key, arrived, partition,"
            " next_retry_at, updated_at) SELECT id, 'retrying', 1, topic, key, id, 0, now() +"
            f" interval '1 day', now() + interval '1 day' FROM outbox WHERE id = {ahead};"
            " CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'no'; END$$;"
            " CREATE TRIGGER no BEFORE UPDATE ON outbox_state FOR EACH ROW"
            f" WHEN (NEW.outbox_id = {ahead}) EXECUTE FUNCTION no()".encode()
        )
        leader = ListedSweep(bench.settings, bench.registry, stage.log)
        assert bench.run(_rounds(bench, leader, 3)) == 1
        assert bench.query(RESENT) == [(lost,)]
        reason = "PostgreSQL refuses it: RaiseException (SQLSTATE P0001)"
        assert leader.waits == [f"topic (any): {reason}"]


TOO_MANY = """
CREATE FUNCTION too_many() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN IF (SELECT count(*) FROM sent) > 2 THEN
RAISE 'too slow' USING ERRCODE = 'query_canceled'; END IF; RETURN NULL; END$$;
CREATE TRIGGER too_many AFTER INSERT ON outbox REFERENCING NEW TABLE AS sent
FOR EACH STATEMENT EXECUTE FUNCTION too_many()"""


def test_messages_that_take_too_long_together_are_sent_again_in_parts(database: str) -> None:
    """Under a `statement_timeout` of the URL, which the server answers as this trigger does."""
    with Bench(database) as bench:
        stage = Stage(bench)
        ids = [stage.insert(bench.connection, key, "plain") for key in "aabbabd"]
        bench.raise_floor(ids[-1])
        bench.connection.execute(TOO_MANY)
        leader = ListedSweep(bench.settings, bench.registry, stage.log)
        assert bench.run(_rounds(bench, leader, 3)) == len(ids)
        assert bench.query(RESENT) == [(each,) for each in ids]
        assert leader.waits == []


class Both(ListedSweep):
    """Every topic is as the one of the stage."""

    def _look(self, names: Iterable[str]) -> dict[str, Topic]:
        [topic] = super()._look(names).values()
        return dict.fromkeys(names, topic)


def test_a_topic_of_which_nothing_may_be_sent_again_holds_up_no_other(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Bench(database) as bench:
        stage = Stage(bench)
        [[first]] = bench.connection.execute(
            "INSERT INTO outbox (biz_type, topic, key, payload) VALUES ('a', 'a', 'a', '{}')"
            " RETURNING id"
        ).fetchall()
        lost = stage.insert(bench.connection, "a", "plain")
        bench.raise_floor(lost)
        bench.connection.execute(REFUSE.format(id=first, state="42501").encode())
        other = EventType("a", "a", "book", Note, "simulation")
        agents = {**bench.registry.agents, "a": Agent(other, bench.handler, "simulation")}
        leader = Both(bench.settings, Registry(agents), stage.log)
        bench.run(_rounds(bench, leader, 3))
        assert bench.query(RESENT) == [(lost,)]
        reason = "PostgreSQL refuses it: InsufficientPrivilege (SQLSTATE 42501)"
        assert leader.waits == [f"topic a: {reason}"]
        assert sum("topic not swept" in each.message for each in caplog.records) == 1


def test_what_may_not_be_sent_again_is_a_fault_as_long_as_the_leader_says_so(
    database: str,
) -> None:
    with Bench(database) as bench:
        bench.raise_floor(0)
        lines = ["message 7 of topic a: PostgreSQL refuses it: CheckViolation (SQLSTATE 23514)"]
        leader = LeaderFigures(bench.settings, (), lambda: lines)

        def told() -> list[str]:
            snapshot = look(bench.operators)
            bench.operators.rollback()
            return [each.title for each in faults_of(snapshot) if each.code == "sweep.refused"]

        async def write() -> None:
            leader._due.clear()
            async with await connect(bench._url) as connection:
                await leader.write(connection)

        bench.run(write())
        assert told() == [f"what Kafka lost is not sent again: {lines[0]}"]
        # Of a leader that is gone nobody knows it any more.
        bench.query("UPDATE outbox_primary SET at = now() - interval '2 minutes' RETURNING 1")
        assert told() == []
        lines.clear()
        bench.run(write())
        assert told() == []


@pytest.mark.parametrize(
    "error", [KafkaException(KafkaError(KafkaError.FENCED_LEADER_EPOCH)), TimeoutError()]
)
def test_clients_that_kafka_refused_are_made_anew_and_it_is_said_again(
    database: str, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """One that knew of leaders from before a fence names them for ever."""
    refused: Future[Any] = Future()
    refused.set_exception(error)
    admin = SimpleNamespace(
        list_topics=lambda timeout: SimpleNamespace(
            topics={TOPIC: SimpleNamespace(partitions={0: None})}
        ),
        describe_topics=lambda wanted: {TOPIC: refused},
    )
    with Bench(database) as bench:
        leader = sweep.Sweep(bench.settings, bench.registry)
        for said in (1, 1, 2):
            leader._kafka = (admin, None)  # type: ignore[assignment]
            assert leader._look([TOPIC]) == {}
            assert leader._kafka is None
            assert sum("topic not swept" in each.message for each in caplog.records) == said
            if said == 1:
                leader._unreadable[TOPIC] -= sweep.REFUSED_SECONDS / 2  # five minutes go by
