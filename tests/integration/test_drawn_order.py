"""Numbers that stand for an order are drawn in that order.

However the planner joins what they are for.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import md5
from itertools import combinations
from typing import Any

import orjson
import psycopg
import pytest

from streams.database import query

ORDER = [3, 1, 5, 2, 4]
WAYS = ("hashjoin", "mergejoin", "nestloop", "material", "indexscan", "bitmapscan")
WRITTEN = 1_000_000_000_000  # in milliseconds since 1970
SINCE_2000 = (WRITTEN - 946_684_800_000) * 1000
ROWS = [
    {
        "outbox_id": one,
        "status": "consumed",
        "open": True,
        "key": "a",
        "partition": 0,
        "offset": one,
        "attempts": 0,
        "created_ms": 0,
        "biz_type": "x",
        "id": one,
        "ms": WRITTEN,
        "known": False,
    }
    for one in ORDER
]
GIVEN: dict[str, Any] = {
    "topic": "t",
    "source": "s",
    "messages": orjson.dumps(ROWS).decode(),
    "records": orjson.dumps(ROWS).decode(),
    "digest": md5(
        (b"a" + SINCE_2000.to_bytes(8, "big")) * len(ORDER), usedforsecurity=False
    ).hexdigest(),
    "ids": ORDER,
    "bodies": ORDER,
    "first": min(ORDER),
    "last": max(ORDER),
    "sources": ["s"] * len(ORDER),
    "partitions": [0] * len(ORDER),
    "offsets": ORDER,
    "payload": None,
    "checked": True,
}
OURS = (
    "INSERT INTO outbox (id, biz_type, topic, key, payload, created_at) OVERRIDING SYSTEM VALUE"
    f" SELECT one, 'x', 't', 'a', '{{}}', timestamp '1970-01-01' + {WRITTEN} * interval '1 ms'"
    " FROM generate_series(1, 5) AS one; SELECT setval('outbox_id_seq', 100);"
)
OUR_STATES = (
    f"{OURS} INSERT INTO outbox_state (outbox_id, status) SELECT one, 'consumed'"
    " FROM generate_series(1, 5) AS one"
)
FOREIGN = (
    "INSERT INTO outbox_foreign (source, outbox_id, biz_type, topic, key, created_at, status, open)"
    " SELECT 's', one, 'x', 't', 'a', now(), 'consumed', true FROM generate_series(1, 5) AS one"
)
OUR_ORDER = "SELECT outbox_id FROM outbox_state ORDER BY"
THEIR_ORDER = "SELECT outbox_id FROM outbox_foreign ORDER BY"


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection[Any]]:
    """A migrated database; sequences go on where they were."""
    with psycopg.connect(database) as connection:
        yield connection


@pytest.mark.parametrize(
    ("statement", "before", "after"),
    [
        ("claim", OURS, f"{OUR_ORDER} applied"),
        ("claim_all", OURS, f"{OUR_ORDER} applied"),
        ("open", OURS, f"{OUR_ORDER} arrived"),
        ("reclaim", OUR_STATES, f"{OUR_ORDER} applied"),
        ("set_aside", OUR_STATES, f"{OUR_ORDER} arrived"),
        ("dead_replay", OUR_STATES, f"{OUR_ORDER} arrived"),
        ("dead_replay", OUR_STATES, f"{OUR_ORDER} source_id"),
        ("foreign_claim", "SELECT 1", f"{THEIR_ORDER} applied"),
        ("foreign_claim_all", "SELECT 1", f"{THEIR_ORDER} applied"),
        ("foreign_open", "SELECT 1", f"{THEIR_ORDER} arrived"),
        ("foreign_reclaim", FOREIGN, f"{THEIR_ORDER} applied"),
        ("foreign_set_aside", FOREIGN, f"{THEIR_ORDER} arrived"),
        ("foreign_replay", FOREIGN, f"{THEIR_ORDER} arrived"),
    ],
)
def test_numbers_are_drawn_in_the_order_given(
    connection: psycopg.Connection[Any], statement: str, before: str, after: str
) -> None:
    for count in range(len(WAYS) + 1):
        for off in combinations(WAYS, count):
            connection.execute(before.encode())
            if count % 2:
                connection.execute("ANALYZE outbox, outbox_state, outbox_foreign")
            for way in off:
                connection.execute(f"SET LOCAL enable_{way} = off".encode())
            connection.execute(query(statement), GIVEN)
            found = [one for (one,) in connection.execute(after.encode())]
            assert found == ORDER, f"without {', '.join(off)}"
            connection.rollback()
