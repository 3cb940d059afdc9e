"""A deployment full of messages, dead letters and figures, as its tables show it.

For pages: no process of it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import LiteralString, NamedTuple

import psycopg
from sqlalchemy import Connection

from streams.database import partitions, sync_engine

PARTITIONS = 40
PORTION = 500_000
BIZ_TYPES, CODES = 5, 8
LINE = 3
"""Open messages of each open conversation: one tried again, or dead, and others parked behind."""


class Crowd(NamedTuple):
    """How much there is; the causes are always 40."""

    rows: int = 10_000_000
    dead: int = 200_000
    open: int = 20_000

    @property
    def pending(self) -> int:
        """Messages above the relay's floor, at the end of the outbox."""
        return self.rows // 1000

    @property
    def published(self) -> int:
        """Messages below it whose fate has not begun."""
        return self.rows // 4000

    @property
    def begun(self) -> int:
        """The id up to which every message has a fate."""
        return self.rows - self.pending - self.published

    @property
    def settled(self) -> int:
        """The id up to which no message is open, but those that are dead."""
        return self.begun - LINE * self.open


# Conversations of about fifty messages; those that are open have a few more at the end.
OUTBOX: LiteralString = """
INSERT INTO outbox (biz_type, topic, key, payload, created_at)
SELECT 'kind-' || n %% %(biz_types)s, 'topic-' || n %% %(biz_types)s,
       CASE WHEN n > %(settled)s AND n <= %(begun)s THEN 'open-' || n %% %(open)s
            ELSE 'key-' || n %% %(keys)s END,
       json_build_object('user_id', n, 'message', repeat('m', 60)),
       (now() - interval '7 days' * (1 - n::double precision / %(rows)s)) AT TIME ZONE 'UTC'
FROM generate_series(%(first)s::bigint, %(last)s) AS n
"""
FINAL: LiteralString = """
INSERT INTO outbox_state (outbox_id, status, "offset", partition, applied, attempts, error_code,
                          error, updated_at)
SELECT n, CASE WHEN dies THEN 'dead' ELSE 'consumed' END, n, n %% 8, CASE WHEN NOT dies THEN n END,
       CASE WHEN dies THEN 20 ELSE 0 END,
       CASE WHEN dies
            THEN 'code-' || chr(97 + (n / %(every)s / %(biz_types)s %% %(codes)s)::int) END,
       CASE WHEN dies THEN 'row ' || n || ' has no user' END,
       now() - interval '7 days' * (1 - n::double precision / %(rows)s)
             * CASE WHEN dies THEN 0.3 ELSE 1 END
FROM generate_series(%(first)s::bigint, %(last)s) AS n,
     LATERAL (SELECT n %% %(every)s = n / %(every)s %% %(biz_types)s AS dies) AS d
"""
OPEN: LiteralString = """
INSERT INTO outbox_state (outbox_id, status, "offset", partition, arrived, attempts, topic, key,
                          error_code, error, next_retry_at, updated_at)
SELECT o.id, CASE WHEN o.id > %(settled)s + %(open)s THEN 'parked' WHEN o.id %% 20 = 0 THEN 'dead'
                  ELSE 'retrying' END,
       o.id, o.id %% 8, nextval('outbox_arrived'), 3, o.topic, o.key, '23503', 'no such user',
       now() + interval '1 hour', now() - random() * interval '2 hours'
FROM outbox AS o
WHERE o.id > %(settled)s AND o.id <= %(begun)s
ORDER BY o.id
"""
FIGURES: tuple[LiteralString, ...] = (
    """
    INSERT INTO outbox_biz_types (biz_type, topic, max_bytes, partitions, replication_factor,
                                  retention_hours)
    SELECT 'kind-' || n, 'topic-' || n, 900000, 8, 1, 168
    FROM generate_series(0, %(biz_types)s - 1) AS n
    """,
    """
    INSERT INTO relay_position (name, mode, floor, lsn, leader, pid, heartbeat, identity, asked,
                                doing, rate)
    VALUES ('outbox', 'cdc', %(rows)s - %(pending)s, pg_current_wal_insert_lsn(), 'relay:1', 1,
            now() + interval '1 day', outbox_identity(), 'auto', 'streaming', 20000)
    """,
    """
    INSERT INTO outbox_primary (relay, seen)
    VALUES ('outbox', json_build_object('settled', %(settled)s::bigint))
    """,
    """
    INSERT INTO outbox_processes (id, kind, name, host, pid, version, partitions, memory, heartbeat,
                                  started)
    SELECT gen_random_uuid(), 'worker', 'outbox-streams', 'worker-' || n, 1, '0.1.0',
           CASE WHEN n <= 20
                THEN jsonb_build_object('topic-' || n %% 5, ARRAY[n / 5 * 2, n / 5 * 2 + 1])
                ELSE '{}' END,
           150000000,
           CASE WHEN n <= 20 THEN now() + interval '1 day' ELSE now() - n * interval '10 s' END,
           now() - interval '1 day'
    FROM generate_series(1, 100) AS n
    """,
    """
    INSERT INTO outbox_lag ("group", topic, partition, committed, end_offset, log_start, worked, at)
    SELECT 'outbox-streams', 'topic-' || t, p, 1000000, 1000000 + p, 0, now(),
           now() + interval '1 day'
    FROM generate_series(0, %(biz_types)s - 1) AS t, generate_series(0, 7) AS p
    """,
    """
    INSERT INTO outbox_audits (at, seconds, complete, messages, wrong, report)
    SELECT now() - n * interval '1 day', 30, false, 100000, 0,
           json_build_object('until', %(settled)s::bigint, 'left', 3)
    FROM generate_series(90, 1, -1) AS n
    """,
    """
    INSERT INTO outbox_actions (at, who, act, what, why)
    SELECT now() - n * interval '1 minute', 'amy', 'replay', '{"count": 12, "ids": [1, 2, 3]}',
           'mended'
    FROM generate_series(10000, 1, -1) AS n
    """,
    """
    INSERT INTO outbox_operations (act, who, why, filter, through, hash, planned, done, state,
                                   submitted_at, ended_at)
    SELECT 'replay', 'amy', 'mended', '{"error": "code-a"}', 0, '', 5000, 5000, 'done', now(), now()
    FROM generate_series(1, 100)
    """,
    """
    INSERT INTO outbox_operation_items (operation, position, outbox_id, outcome)
    SELECT 100, n, n, 'done' FROM generate_series(1, 5000) AS n
    """,
)

# What goes by with time: written anew for each look at what was filled before.
FLOW: tuple[LiteralString, ...] = (
    "DELETE FROM outbox_stats",
    "DELETE FROM outbox_gauges",
    # As the leader keeps them: ten seconds for two hours, a minute for three days, an hour for
    # ninety; and what twenty processes sent in the last minute, not merged yet.
    """
    INSERT INTO outbox_stats (width, bucket, process, biz_type, enqueued, relayed, consumed,
                              retried, dead, latency)
    SELECT width, date_bin(width * interval '1 s', now(), 'epoch') - n * width * interval '1 s', '',
           'kind-' || k, 1000, 1000, 990, 10, 1, array_fill(30, ARRAY[20])
    FROM (VALUES (10, 720), (60, 4320), (3600, 2160)) AS kept (width, buckets),
         generate_series(7, buckets) AS n, generate_series(0, %(biz_types)s - 1) AS k
    """,
    """
    INSERT INTO outbox_stats (width, bucket, process, biz_type, consumed, latency)
    SELECT 10, date_bin('10 s', now(), 'epoch') - n * interval '10 s', 'process-' || p,
           'kind-' || k, 50, array_fill(2, ARRAY[20])
    FROM generate_series(0, 6) AS n, generate_series(1, 20) AS p,
         generate_series(0, %(biz_types)s - 1) AS k
    """,
    """
    INSERT INTO outbox_gauges (width, bucket, name, label, value, highest)
    SELECT width, date_bin(width * interval '1 s', now(), 'epoch') - n * width * interval '1 s',
           name, '', n, n
    FROM (VALUES (10, 720), (60, 4320), (3600, 2160)) AS kept (width, buckets),
         generate_series(0, buckets) AS n,
         unnest(ARRAY['lag', 'wal_held', 'oldest', 'standbys']) AS name
    """,
)


def drop_partitions(connection: Connection) -> None:
    """Those that a migration made, with what is in them."""
    for name in connection.exec_driver_sql(
        "SELECT inhrelid::regclass::text FROM pg_inherits"
    ).scalars():
        if name.rpartition("_")[0] in partitions.PARTITIONED:
            connection.exec_driver_sql(f"DROP TABLE {name}")  # as the server wrote it, quoted


def fill(url: str, crowd: Crowd) -> Iterator[float]:
    """Fill a migrated database that is empty, in 40 partitions; yields how much of it is done."""
    engine = sync_engine(url)
    with engine.begin() as empty:
        drop_partitions(empty)
        partitions.ensure_sync(empty, ahead=crowd.rows, width=max(1, crowd.rows // PARTITIONS))
    engine.dispose()
    values = {
        **crowd._asdict(),
        "keys": crowd.rows // 50 + 7,
        "every": crowd.rows // crowd.dead,
        "biz_types": BIZ_TYPES,
        "codes": CODES,
        "pending": crowd.pending,
        "begun": crowd.begun,
        "settled": crowd.settled,
    }
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET synchronous_commit = off")
        for number, first in enumerate(range(1, crowd.rows + 1, PORTION)):
            last = min(first + PORTION - 1, crowd.rows)
            connection.execute(OUTBOX, values | {"first": first, "last": last})
            if first <= crowd.settled:
                until = {"first": first, "last": min(last, crowd.settled)}
                connection.execute(FINAL, values | until)
            yield min(1.0, PORTION * (number + 1) / crowd.rows)
        connection.execute(OPEN, values)
        for statement in FIGURES:
            connection.execute(statement, values)
        connection.execute("VACUUM (ANALYZE)")
    flow(url)


def flow(url: str) -> None:
    """Write figures that end now, instead of those there are."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in FLOW:
            connection.execute(statement, {"biz_types": BIZ_TYPES})
        connection.execute("VACUUM (ANALYZE) outbox_stats, outbox_gauges")


def addresses(url: str, crowd: Crowd) -> dict[str, str]:
    """What to look at: of pages with a part that has a name, and what else there is much of."""
    with psycopg.connect(url) as connection:
        [(cause,)] = connection.execute(
            "SELECT fingerprint FROM outbox_dead_letters GROUP BY 1 ORDER BY count(*) DESC LIMIT 1"
        ).fetchall()
        [(dead,)] = connection.execute("SELECT max(outbox_id) FROM outbox_dead_letters").fetchall()
        [(topic, key)] = connection.execute(
            "SELECT topic, key FROM outbox WHERE id = %s", [crowd.settled + 1]
        ).fetchall()
    return {
        "/dead/{fingerprint}": f"/dead/{cause}",
        "/conversation": f"/conversation?topic={topic}&key={key}",
        "/messages/{message}": f"/messages/{dead}",
        "/operations/{operation}": "/operations/100",
        "a conversation at rest": "/conversation?topic=topic-1&key=key-1",
        "dead of a biz_type": "/dead/?biz_type=kind-1",
        "what is held": "/dead/?held=true",
        "charts of a week": "/?span=7d",
        "search for an id": f"/search?q={dead}",
        "search for a word": "/search?q=open-7",
        "metrics": "/metrics/cluster",
    }
