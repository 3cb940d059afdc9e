"""What pages and commands show of a deployment, against plain SQL on the same tables."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, NullPool

from streams.broker.partitioner import partition_of
from streams.database import query, sync_engine
from streams.operate import acts, axis, dead_letters, faults, history, look, readings, series
from streams.operate.metrics import cluster_metrics
from streams.operate.selection import Choice
from streams.operate.snapshot import Count, Limits

FILL = """
INSERT INTO outbox (biz_type, topic, key, payload, created_at)
SELECT 'chat', 't', 'k' || n % 10, '{}',
       (now() AT TIME ZONE 'UTC') - interval '1 hour' + n * interval '1 second'
FROM generate_series(1, 100) AS n;
INSERT INTO relay_position (name, mode, floor, leader, pid, heartbeat, doing, identity, asked)
VALUES ('outbox', 'poll', 90, 'host:1', 1, now(), 'polling', outbox_identity(), 'poll');
-- 60 consumed, 12 dead of three causes (two of them hold), 3 retrying, 4 parked, 1 replaying:
-- 10 published, 10 pending.
INSERT INTO outbox_state (outbox_id, status, partition, "offset", applied)
SELECT n, 'consumed', n % 2, n, CASE n WHEN 11 THEN 1000 ELSE n END
FROM generate_series(1, 60) AS n;
INSERT INTO outbox_state (outbox_id, status, attempts, error_code, error, topic, key)
SELECT n, 'dead', 3, CASE WHEN n <= 70 THEN '23505' ELSE 'payload' END,
       CASE WHEN n = 72 THEN 'another' ELSE 'row ' || n || ' is wrong' END,
       CASE WHEN n <= 62 THEN 't' END, CASE WHEN n <= 62 THEN 'k' || n % 10 END
FROM generate_series(61, 72) AS n;
INSERT INTO outbox_state
    (outbox_id, status, attempts, error_code, topic, key, arrived, next_retry_at)
SELECT n, CASE WHEN n <= 75 THEN 'retrying' WHEN n <= 79 THEN 'parked' ELSE 'replaying' END,
       CASE WHEN n = 73 THEN 18 ELSE 1 END, '23503', 't', 'k' || n % 10, nextval('outbox_arrived'),
       now() + interval '1 hour'
FROM generate_series(73, 80) AS n;
INSERT INTO outbox_foreign
    (source, outbox_id, biz_type, topic, key, status, error_code, error, open, payload)
VALUES ('seed', 1, 'chat', 'e', 'x', 'dead', '23505', 'row 9 is wrong', false, '{}'),
       ('seed', 2, 'chat', 'e', 'y', 'retrying', '23505', 'row 9 is wrong', true, '{}');
INSERT INTO outbox_audits (at, seconds, complete, messages, wrong, report)
VALUES (now() - interval '2 days', 1, true, 50, 1,
        '{"until": 50, "left": 2, "wrong": {"missing": {"count": 1}}}');
INSERT INTO outbox_actions (who, act, what, why)
VALUES ('ann', 'replay', '{"count": 2, "ids": [1, 2]}', 'mended');
INSERT INTO outbox_processes
    (id, kind, name, host, pid, version, partitions, waits_for, waits_code, waits_since)
VALUES (gen_random_uuid(), 'worker', 'g', 'h', 7, '1', '{"t": [0]}',
        'UndefinedColumn (topic t, partition 0)', '42703', now() - interval '1 minute');
INSERT INTO outbox_lag ("group", topic, partition, committed, end_offset, log_start, moved, at)
VALUES ('g', 't', 0, 10, 25, 0, now() - interval '5 minutes', now()),
       ('g', 't', 1, 20, 25, 0, now() - interval '5 minutes', now());
INSERT INTO outbox_stats (width, bucket, process, biz_type, consumed, dead, latency)
SELECT 10, date_bin('10 s', now(), 'epoch') - interval '20 seconds', process, 'chat', 60, 3,
       array_fill(10, ARRAY[32])
FROM (VALUES (''), ('p')) AS processes (process);
INSERT INTO outbox_gauges (width, bucket, name, label, value, highest)
SELECT 10, date_bin('10 s', now(), 'epoch') - n * interval '10 seconds', 'lag', 't',
       5000 - 80 * n, 5000
FROM generate_series(0, 50) AS n;
"""


@pytest.fixture
def filled(database: str) -> Iterator[Connection]:
    """A deployment in which something of everything is wrong."""
    with psycopg.connect(database, autocommit=True) as connection:
        for statement in FILL.split(";\n"):
            if statement.strip():
                connection.execute(statement.encode())
    engine = sync_engine(database, poolclass=NullPool)
    with engine.connect() as connection:
        yield connection


def statuses(connection: Connection) -> dict[str, int]:
    rows = connection.exec_driver_sql(
        "SELECT status, count(*) FROM outbox_messages GROUP BY status"
        " UNION ALL SELECT status, count(*) FROM outbox_foreign GROUP BY status"
    ).all()
    connection.rollback()
    counts: dict[str, int] = {}
    for status, count in rows:
        counts[status] = counts.get(status, 0) + count
    return counts


def test_a_snapshot_says_what_the_tables_say(filled: Connection) -> None:
    snapshot = look.look(filled, Limits(relay="outbox", topics=("t",)))
    totals, counts = snapshot.totals, statuses(filled)
    assert totals.pending == Count(counts["pending"]) == Count(10)
    assert totals.published == Count(counts["published"]) == Count(10)
    assert (totals.retrying, totals.parked, totals.replaying) == (4, 4, 1)
    assert (totals.dead, totals.held) == (counts["dead"], 2) == (13, 2)
    assert not totals.at_rest
    assert sum(cause.messages for cause in snapshot.causes) == totals.dead
    assert max(cause.messages for cause in snapshot.causes) == 11
    assert snapshot.proof is not None
    assert (snapshot.proof.missing, snapshot.proof.until_id, snapshot.proof.under_way) == (
        1,
        50,
        Count(52),
    )
    [worker] = snapshot.workers
    assert (worker.pid, worker.state, worker.partitions) == (7, "alive", {"t": (0,)})
    assert [(part.partition, part.lag, part.owner) for part in snapshot.partitions] == [
        (0, 15, worker.id),
        (1, 5, None),
    ]
    assert snapshot.rates[0].consumed == pytest.approx(2.0)
    assert snapshot.latency.samples == 640
    assert {head.key for head in snapshot.waiting} >= {"k3", "k4", "k5"}
    codes = {fault.code for fault in faults.faults_of(snapshot)}
    assert codes >= {
        "run.waits", "partition.stuck", "partition.unowned", "audit.red", "audit.overdue",
        "attempts.ending",
        "dead.new_cause", "lag.grows",
    }  # fmt: skip


def test_conversations_of_many_messages_hide_none_that_waits_less_long(filled: Connection) -> None:
    """Few of the longest waiting messages are looked at first; they may all be of one."""
    filled.exec_driver_sql(
        "INSERT INTO outbox_state (outbox_id, status, topic, key, arrived, updated_at)"
        " SELECT n, 'parked', 't', 'long', nextval('outbox_arrived'), now() - interval '1 day'"
        " FROM generate_series(1001, 1100) AS n"
    )
    filled.commit()
    every = look.heads(filled, limit=200)
    assert [(head.key, head.behind) for head in every][:1] == [("long", 99)]
    assert len({head.key for head in every}) == len(every) > 3
    for limit in (1, 2, 3):
        assert look.heads(filled, limit=limit) == every[:limit]
    held = look.heads(filled, held=True, limit=1)
    assert held == tuple(head for head in every if head.status == "dead")[:1]
    assert look.heads(filled, topic="t", key="long") == every[:1]


@pytest.mark.parametrize("moment", ["infinity", "-infinity", "20000-01-01"])
def test_a_time_that_is_none_fails_no_page(filled: Connection, moment: str) -> None:
    """A producer may write any time; what cannot be shown is left out."""
    filled.exec_driver_sql(f"UPDATE outbox SET created_at = '{moment}' WHERE id IN (50, 90, 91)")
    filled.commit()
    snapshot = look.look(filled, Limits(relay="outbox", topics=("t",)))
    assert snapshot.proof is not None
    assert snapshot.proof.until is not None and snapshot.totals.oldest is not None
    with filled.begin():
        assert axis.axis(filled, "t", "k0").looked_back is not None
    # Of what others load: the newest, what has no fate, what waits above a floor.
    bounds = {"after": 0, "until": 10**6, "limit": 100, "floor": 0, "newest": 10**6}
    bounds |= {"age": 0, "most": 100}
    with filled.begin():
        filled.exec_driver_sql(f"UPDATE outbox SET created_at = '{moment}'")
        filled.exec_driver_sql("DELETE FROM outbox_state WHERE outbox_id < 50")
        for name in ("newest_messages", "first_fateless", "oldest_above", "audit_unpublished"):
            rows = filled.exec_driver_sql(query(name), bounds).fetchall()
            assert bool(rows) is (name != "audit_unpublished" or moment == "-infinity"), name


def test_a_message_that_a_run_waits_with_says_what_it_waits_for(filled: Connection) -> None:
    persisted, waiting, pending = history.messages(filled, [85, 1, 95])
    [step] = [step for step in waiting.events if step.stage == "waits"]
    assert step.about["sqlstate"] == "42703"
    assert step.about["reason"] == "UndefinedColumn (topic t, partition 0)"
    assert all(step.stage != "waits" for step in (*persisted.events, *pending.events))
    # Once the topic's partitions are known, those of other partitions wait for nothing.
    filled.exec_driver_sql(
        "INSERT INTO outbox_topics (topic, topic_id, cluster_id, partitions)"
        " VALUES ('t', 'i', 'c', 8)"
    )
    told = {
        message.key: any(step.stage == "waits" for step in message.events)
        for message in history.messages(filled, range(81, 91))
    }
    assert told == {f"k{n}": partition_of(f"k{n}", 8) == 0 for n in range(10)}


def test_a_dead_message_is_noted_once_whoever_changes_its_state(filled: Connection) -> None:
    def noted() -> list[tuple[Any, ...]]:
        rows = filled.exec_driver_sql(
            "SELECT source, outbox_id, topic, key, biz_type, error_code, fingerprint, held"
            " FROM outbox_dead_letters ORDER BY 1, 2"
        ).all()
        same = filled.exec_driver_sql(
            "SELECT source, outbox_id, topic, key, biz_type, error_code, fingerprint, held"
            " FROM outbox_dead ORDER BY 1, 2"
        ).all()
        filled.commit()
        assert rows == same
        return [tuple(row) for row in rows]

    before = noted()
    assert len(before) == 13
    for statement, expected in (
        ("UPDATE outbox_state SET topic = NULL, key = NULL WHERE outbox_id = 61", 13),
        ("UPDATE outbox_state SET status = 'replaying' WHERE outbox_id = 62", 12),
        (
            "UPDATE outbox_state SET status = 'dead', error_code = 'payload' WHERE outbox_id = 62",
            13,
        ),
        ("UPDATE outbox_state SET status = 'discarded' WHERE outbox_id = 63", 12),
        ("DELETE FROM outbox_state WHERE outbox_id = 64", 11),
        ("UPDATE outbox_foreign SET status = 'discarded', payload = NULL WHERE outbox_id = 1", 10),
        ("UPDATE outbox_foreign SET status = 'dead', open = true WHERE outbox_id = 2", 11),
    ):
        filled.exec_driver_sql(statement)
        assert len(noted()) == expected, statement
    # When a message died is not changed by what is done to it while it is dead.
    died = "SELECT died_at, died FROM outbox_dead_letters WHERE outbox_id = 65"
    at = filled.exec_driver_sql(died).one()
    filled.exec_driver_sql(
        "UPDATE outbox_state SET updated_at = now() + interval '1 h' WHERE outbox_id = 65"
    )
    assert filled.exec_driver_sql(died).one() == at


def test_pages_are_read_a_piece_at_a_time(filled: Connection) -> None:
    everything = dead_letters.DeadFilter()
    first = dead_letters.page(filled, everything, limit=8)
    rest = dead_letters.page(filled, everything, before=first.before, limit=8)
    assert rest.before is None
    shown = [row.outbox_id for row in (*first.rows, *rest.rows)]
    assert shown == ["seed:1", *range(72, 60, -1)]
    assert first.rows[1].error == "another"
    held = dead_letters.page(filled, dead_letters.DeadFilter(held=True))
    assert [row.outbox_id for row in held.rows] == [62, 61]
    one = dead_letters.page(filled, dead_letters.DeadFilter(fingerprint=first.rows[1].fingerprint))
    assert [row.outbox_id for row in one.rows] == [72]

    [cause] = look.causes(filled, fingerprint=first.rows[1].fingerprint, sparklines=True)
    assert (cause.messages, cause.example, cause.error) == (1, 72, "another")
    assert sum(cause.sparkline) == cause.sparkline[-1] == 1

    conversation = axis.axis(filled, "t", "k1")
    assert [item.outbox_id for item in conversation.items] == [
        1,
        11,
        21,
        31,
        41,
        51,
        61,
        71,
        81,
        91,
    ]
    assert conversation.before is None
    assert [item.outbox_id for item in conversation.items if item.late] == [11]
    assert [item.outbox_id for item in conversation.items if item.gap] == []
    assert conversation.head is not None
    assert (conversation.head.head, conversation.head.status) == (61, "dead")

    assert [act.who for act in acts.acts(filled)] == ["ann"]
    assert acts.acts(filled, who="bob") == []
    assert [audit.messages for audit in acts.audits(filled)] == [50]

    kinds = {
        text: {each.kind for each in readings.readings(filled, text)}
        for text in ("61", "k1", "23505", "", "\0")
    }
    assert kinds == {
        "61": {"message", "conversation"},
        "k1": {"conversation"},
        "23505": {"message", "code", "conversation"},
        "": set(),
        "\0": set(),
    }
    assert readings.readings(filled, "61")[0] == readings.Reading("message", 61, True)


MANY_DEAD = """
INSERT INTO outbox_dead_letters (source, outbox_id, topic, key, biz_type, error_code, fingerprint,
                                 died_at, held)
SELECT '', 1000 + n, 't', 'c' || n * 7 % 3001, 'chat', 'e', lpad(to_hex(n % 20), 8, '0'),
       now() - n * interval '1 second', n % 100 = 0
FROM generate_series(1, 20000) AS n;
VACUUM (ANALYZE) outbox_dead_letters;
ANALYZE outbox, outbox_state
"""
VISIBLE = (
    "SELECT relallvisible >= relpages FROM pg_class WHERE oid = 'outbox_dead_letters'::regclass"
)
CAUSES = {"fingerprint": None, "limit": 200}
GROUPS = Choice().parameters()
PAGE = asdict(dead_letters.DeadFilter()) | {"before": None, "limit": 51}
HELD = {"topic": None, "key": None, "held": True, "limit": 10, "among": 200}
NEVER = dict.fromkeys(PAGE, None) | {"held": False, "limit": 51, "fingerprint": "0" * 8}


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A plan's node, and all below it."""
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


@pytest.mark.parametrize(
    ("name", "parameters", "blocks"),
    [
        # All of them, each once: a leaf of the index holds about a hundred.
        ("look_causes", CAUSES, 900),
        ("look_causes", CAUSES | {"fingerprint": "00000003"}, 400),
        ("dead_groups", GROUPS, 900),
        # So many as a page shows.
        ("dead_page", PAGE, 700),
        ("dead_page", NEVER, 700),
        ("badges", {}, 700),
        ("look_heads", HELD, 200),
    ],
)
def test_many_dead_letters_are_read_once_in_the_order_of_an_index(
    filled: Connection, name: str, parameters: dict[str, Any], blocks: int
) -> None:
    driver: Any = filled.connection.driver_connection
    driver.autocommit = True
    for statement in MANY_DEAD.split(";\n"):
        driver.execute(statement.encode())
    # Pages that somebody's snapshot kept from being all visible, an autovacuum's, are read twice.
    deadline = time.monotonic() + 60
    while not driver.execute(VISIBLE).fetchone()[0]:
        assert time.monotonic() < deadline
        driver.execute("VACUUM outbox_dead_letters")
    explained = f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {query(name)}"
    [plan] = driver.execute(explained.encode(), parameters).fetchone()[0]
    assert plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] <= blocks
    sorted_rows = [
        node["Plans"][0]["Actual Rows"] * node["Plans"][0]["Actual Loops"]
        for node in nodes(plan["Plan"])
        if node["Node Type"] in ("Sort", "Incremental Sort")
    ]
    assert max(sorted_rows, default=0) <= 1000, plan


@pytest.mark.parametrize(
    ("span", "width", "buckets"), [("10m", 10, 60), ("1h", 60, 60), ("24h", 3600, 24)]
)
def test_hundreds_of_biz_types_get_wider_buckets(
    filled: Connection, span: series.Span, width: int, buckets: int
) -> None:
    filled.exec_driver_sql(
        "INSERT INTO outbox_biz_types (biz_type, topic, max_bytes)"
        " SELECT 'kind-' || n, 't', 1000 FROM generate_series(1, 300) AS n"
    )
    filled.commit()
    chart = series.series(filled, span)
    assert (chart.width, chart.buckets, len(chart.latency)) == (width, buckets, buckets)
    # Of what is merged each width has rows of its own, and the test wrote those of ten seconds.
    assert sum(chart.lines[0].consumed) == (120 if width == 10 else 60)


@pytest.mark.parametrize("span", series.SPANS)
def test_a_chart_counts_what_is_not_merged_yet(filled: Connection, span: series.Span) -> None:
    chart = series.series(filled, span)
    [line] = chart.lines if chart.width == 10 else [*chart.lines, None][:1]
    assert line is not None
    assert sum(line.consumed) == (120 if chart.width == 10 else 60)
    assert len(line.consumed) == len(chart.latency) == chart.buckets
    assert sum(latency.samples for latency in chart.latency) == (640 if chart.width == 10 else 320)


def as_replica(monkeypatch: pytest.MonkeyPatch, ago: float = 0.0) -> None:
    """From now on this database is looked at as a replica that shows it as it was then."""
    moment = look.moment

    def shown(connection: Connection) -> look.Moment:
        now = moment(connection)
        return replace(now, at=now.at - timedelta(seconds=ago), replica=True, behind=ago)

    for module in (look, series, history):
        monkeypatch.setattr(module, "moment", shown)


def led(connection: Connection, ago: float) -> None:
    """Write down what the leader saw so long ago, and nothing since."""
    row = {
        "name": "outbox", "mode": "cdc", "asked": "cdc", "wish": None, "doing": "streaming",
        "reason": None, "rate": 1.0,
        "position": "0/1", "floor": 90, "leader": "host:1", "pid": 1, "silent": 1.0, "lag_bytes": 5,
        "lag_rows": 10,
        "lag_seconds": 0.5, "strange": False, "wal_status": "reserved", "slot_active": True,
        "safe_wal_size": None,
        "held": 77,
    }  # fmt: skip
    seen = {
        "relays": [row],
        "sharing": {"outbox": [[1, "host:1", [0]]]},
        "attendance": {"outbox": ["outbox-streams relay cdc 2@other"]},
        "pins": [[7, None, "active", "psql", "2026-01-31T12:00:00+00:00"]],
        "settled": 60,
    }
    connection.exec_driver_sql(
        "INSERT INTO outbox_primary (relay, seen, at)"
        " VALUES ('outbox', %s, now() - %s * interval '1 second')",
        (json.dumps(seen), ago),
    )
    connection.commit()


def test_a_replica_shows_relays_as_a_leader_saw_them(
    filled: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    led(filled, 1.0)
    as_replica(monkeypatch)
    snapshot = look.look(filled, Limits(relay="outbox"))
    [relay] = snapshot.relays
    assert relay.leader is not None and relay.slot is not None
    assert (relay.slot.held_bytes, relay.lag.seconds) == (77, 0.5)
    assert [member.pid for member in relay.standbys] == [2]
    assert [pin.pid for pin in snapshot.pins] == [7]


def test_a_replica_says_that_nobody_leads_once_the_leader_writes_nothing(
    filled: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    led(filled, 3600.0)
    as_replica(monkeypatch)
    snapshot = look.look(filled, Limits(relay="outbox"))
    [relay] = snapshot.relays
    assert (relay.leader, relay.sharing, relay.standbys, snapshot.pins) == (None, (), (), ())
    assert relay.silent_seconds == pytest.approx(3601, abs=30)
    # Its floor has stayed: what waits above it is what waits now.
    gap = next(gap for gap in snapshot.gaps if gap.name == "relay")
    assert (relay.lag.rows, gap.messages) == (10, Count(10))
    assert gap.seconds == relay.lag.seconds == pytest.approx(3509, abs=30)
    told = faults.faults_of(snapshot)
    assert "relay.nobody_leads" in {fault.code for fault in told}
    assert b'outbox_relay_leader{relay="outbox"} 0.0' in cluster_metrics(snapshot, told)


def test_what_a_replica_shows_is_judged_by_its_own_moment(
    filled: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its delay is no death: all was well when it was as it shows it."""
    hour = "- interval '1 hour'"
    for statement in (
        f"UPDATE outbox_processes SET heartbeat = heartbeat {hour}",
        f"UPDATE outbox_lag SET at = at {hour}, moved = moved {hour}",
        f"UPDATE outbox_stats SET bucket = bucket {hour}",
        f"UPDATE outbox_gauges SET bucket = bucket {hour}",
    ):
        filled.exec_driver_sql(statement)
    led(filled, 3601.0)
    as_replica(monkeypatch, 3600.0)
    snapshot = look.look(filled, Limits(relay="outbox", topics=("t",)))
    assert [worker.state for worker in snapshot.workers] == ["alive"]
    assert [relay.leader is not None for relay in snapshot.relays] == [True]
    assert snapshot.rates[0].consumed == pytest.approx(2.0)
    assert (snapshot.latency.samples, snapshot.recent_dead) == (640, 6)
    assert "lag:t" in snapshot.trends
    told = {fault.code: fault for fault in faults.faults_of(snapshot)}
    assert not told.keys() & {"workers.none", "worker.silent", "relay.nobody_leads"}
    assert "60 minutes behind" in told["replica.behind"].title
    chart = series.series(filled, "10m")
    assert sum(chart.lines[0].consumed) == 120
    [waiting] = history.messages(filled, [85])
    assert "waits" in [step.stage for step in waiting.events]


def test_figures_of_a_former_group_and_of_a_topic_read_no_more_count_for_nothing(
    filled: Connection,
) -> None:
    """They stay for a day, and whoever worked there then moves nothing any more."""
    filled.exec_driver_sql(
        'INSERT INTO outbox_lag ("group", topic, partition, committed, end_offset, moved, at)'
        " SELECT name, topic, 0, 10, 810, now() - interval '6 hours', now() - interval '5 hours'"
        " FROM (VALUES ('former', 't'), ('g', 'gone')) AS rows (name, topic)"
    )
    filled.exec_driver_sql("UPDATE outbox_lag SET moved = now() WHERE at > now() - interval '1 h'")
    filled.commit()
    snapshot = look.look(filled, Limits(relay="outbox", group="g"))
    assert [(part.group, part.topic, part.lag) for part in snapshot.partitions] == [
        ("g", "t", 15),
        ("g", "t", 5),
    ]
    assert next(gap for gap in snapshot.gaps if gap.name == "workers").messages == Count(20)
    told = faults.faults_of(snapshot)
    assert not {fault.code for fault in told} & {"partition.stuck", "partition.unowned"}
    assert (
        cluster_metrics(snapshot, told).count(b'outbox_lag_records{partition="0",topic="t"}') == 1
    )

    # While nobody writes any, the last ones stand, each with whoever has it in that group.
    filled.exec_driver_sql("UPDATE outbox_lag SET at = at - interval '2 hours'")
    filled.commit()
    snapshot = look.look(filled, Limits(relay="outbox", group="g"))
    assert [part.lag for part in snapshot.partitions] == [15, 5]
    [former] = look.look(filled, Limits(relay="outbox", group="former")).partitions
    assert (former.lag, former.owner) == (800, None)
