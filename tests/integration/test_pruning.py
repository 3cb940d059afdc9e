"""No statement of ours locks other partitions than those of the ids it is given."""

from __future__ import annotations

import json
import re
from typing import Any

import psycopg

from streams.database import connect, queries, query
from streams.database.files import sql_folder

PARTITIONS, WIDTH = 100, 1000
# Messages of two partitions, and a range of ids within one.
IDS, FIRST, LAST = [3001, 7001], 3001, 3002
NEWEST = 99_500
OURS = re.compile(r"\b(outbox|outbox_state|outbox_messages|outbox_dead)\b(?! ?\()")
# What looks at everything: not for a worker, a relay, a sweep or an act on given messages.
EXCEPTIONS = {
    "dead_letters": "the list of all dead letters",
    "dead_in_order": "the list of all dead letters",
    "newest_dead": "the dead letters of a worker's partitions, every half minute",
    "biz_types": "a list for a person",
    "unserved_biz_types": "a worker's start",
    "unknown_biz_types": "a list for a person",
    "give_up_waiting": "an act on every message of a biz_type",
    "wait_on": "the same, taken back",
    "erase_of_roots": "an act on every row that sends a message again, wherever it is",
    "newest_id": "an act: a database is adopted",
    "skip_drawn": "the same",
    "make_notify_trigger": "migrate",
    "drop_notify_trigger": "migrate",
    "recent_rows": "the last million ids, for the status",
    "slot_begins": "migrate: whether the outbox is empty",
    "operation_plan": "a preview, of all dead letters that fit",
    "make_due": "tests",
    "fates": "tests",
    "deliverable": "tests",
}
FOR_PERSONS = [sql_folder() / "queries" / f"{name}.sql" for name in ("audit",)]
MESSAGES = json.dumps(
    [
        {
            "outbox_id": one,
            "status": "retrying",
            "open": True,
            "key": "k",
            "attempts": 1,
            "known": True,
        }
        for one in IDS
    ]
)
RECORDS = json.dumps(
    [{"id": one, "partition": 0, "offset": one, "known": True} for one in (FIRST, LAST)]
)
GIVEN: dict[str, Any] = {
    "ids": IDS,
    "bodies": IDS,
    "outbox_id": IDS[0],
    "row_id": IDS[0],
    "body": IDS[0],
    "id": IDS[0],
    "after": FIRST - 1,
    "upto": LAST,
    "until": LAST,
    "first": FIRST,
    "last": LAST,
    "end": LAST,
    "newest": NEWEST,
    "floor": NEWEST,
    "lows": [FIRST, LAST],
    "highs": [FIRST, LAST],
    "messages": MESSAGES,
    "records": RECORDS,
    "partitions": [0, 0],
    "offsets": [1, 2],
    "partition": 0,
    "digest": "",
    "checked": True,
    "topic": "t",
    "topics": ["t"],
    "key": "k",
    "keys": ["k"],
    "biz_type": "x",
    "biz_types": ["x"],
    "payloads": ["{}"],
    "payload": "{}",
    "traceparent": None,
    "lenient": [],
    "most": 10,
    "limit": 10,
    "bytes": 1000,
    "age": 1.0,
    "since": "2026-01-01",
    "reason": "",
    "hold": False,
    "shards": 1,
}
ARRAYS = {"ids": [FIRST, LAST], "after": [FIRST - 1]}
OTHER: dict[str, dict[str, Any]] = {
    "claim_all": {"ids": ARRAYS["ids"], "checked": False},
    "enqueue_many": {"topics": ["t"], "payloads": ["{}"]},
    # Resends of a message are behind it: as far as the newest id.
    "sweep_lost": {"newest": LAST + 2 * WIDTH, "floor": FIRST},
    "sweep_resent": {"newest": LAST + 2 * WIDTH},
    "oldest_above": {"floor": FIRST, "newest": FIRST + 2 * WIDTH},
    "trace_resends": {"after": NEWEST},
    "axis_items": {"after": NEWEST},
    "look_published": {"after": NEWEST - WIDTH},
    "shard_newer": {"newest": FIRST, "last": LAST, "after": ARRAYS["after"]},
    "shard_gaps": {"after": ARRAYS["after"]},
    "shard_others": {"after": ARRAYS["after"]},
    "trace_older": {"after": NEWEST},
}
LOCKED = """
SELECT count(DISTINCT relation) FILTER (WHERE relname ~ '^outbox_\\d+$'),
       count(DISTINCT relation) FILTER (WHERE relname ~ '^outbox_state_\\d+$'), count(*)
FROM pg_locks JOIN pg_class ON pg_class.oid = relation
WHERE pid = pg_backend_pid() AND relkind IN ('r', 'i')"""


def names() -> list[str]:
    """Every statement that names a partitioned table and is for a worker, a relay or an act."""
    headings = [
        re.findall(r"^-- (\S+) --$", file.read_text(), re.MULTILINE) for file in FOR_PERSONS
    ]
    others = {name for each in headings for name in each} | EXCEPTIONS.keys()
    return sorted(
        name for name, text in queries._load().items() if OURS.search(text) and name not in others
    )


async def test_no_statement_locks_partitions_that_it_was_not_asked_about(database: str) -> None:
    """A full lock table takes the business's transactions: 110 partitions and a retry did it."""
    most: dict[str, Any] = {}
    async with await connect(database) as connection:
        await make_partitions(connection)
        for name in names():
            text = query(name)
            wanted = set(re.findall(r"%\((\w+)\)s", text))
            given = {key: (GIVEN | OTHER.get(name, {})).get(key) for key in wanted}
            async with connection.transaction(force_rollback=True), connection.cursor() as cursor:
                await cursor.execute(text, given, prepare=True)
                await cursor.execute(LOCKED.encode())
                row = await cursor.fetchone()
            assert row is not None
            if max(row[:2]) > 3 or row[2] > 30:
                most[name] = row
    assert not most, f"partitions of outbox, of outbox_state, and locks in all: {most}"


def test_every_exception_is_a_statement_that_needs_to_be_one() -> None:
    assert set(EXCEPTIONS) <= {name for name, text in queries._load().items() if OURS.search(text)}


async def make_partitions(connection: psycopg.AsyncConnection[Any]) -> None:
    """100 of each instead of those that the migration made.

    Nobody writes meanwhile, so the quick way will do.
    """
    parents = "('outbox'::regclass, 'outbox_state'::regclass)"
    leaves = f"SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent IN {parents}"
    for (leaf,) in await (await connection.execute(leaves.encode())).fetchall():
        await connection.execute(f"DROP TABLE {leaf}".encode())
    for start in range(0, PARTITIONS * WIDTH, 50 * WIDTH):
        statements = [
            f"CREATE TABLE {parent}_{first} PARTITION OF {parent}"
            f" FOR VALUES FROM ({first}) TO ({first + WIDTH})"
            for parent in ("outbox", "outbox_state")
            for first in range(start, start + 50 * WIDTH, WIDTH)
        ]
        await connection.execute(";".join(statements).encode())
    await connection.execute("SELECT setval('outbox_id_seq', %s)", [NEWEST])
