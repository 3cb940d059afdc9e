"""A plan may be made while a partition is empty, and run when it is full.

So no claim's may read a whole partition.
"""

from __future__ import annotations

import re
from typing import Any

import psycopg
import pytest

from streams.database import query

GIVEN: dict[str, Any] = {
    "ids": "'{1,2}'",
    "partitions": "'{0,0}'",
    "offsets": "'{1,2}'",
    "first": "1",
    "last": "2",
    "checked": "false",
    "topic": "'t'",
    "source": "'s'",
    "messages": "'[]'",
    "records": "'[]'",
    "digest": "'0'",
}
TYPES = {
    "first": "bigint",
    "last": "bigint",
    "checked": "boolean",
    "topic": "text",
    "source": "text",
    "digest": "text",
}
FILLED = (
    "INSERT INTO outbox (biz_type, topic, key, payload) SELECT 'x', 't', 'a',"
    " '{}' FROM generate_series(1, 3);"
    "INSERT INTO outbox_state (outbox_id, status) VALUES (100, 'consumed');"
    "INSERT INTO outbox_foreign (source, outbox_id, biz_type, topic, key, created_at, status, open)"
    " VALUES ('s', 100, 'x', 't', 'a', now(), 'consumed', true); ANALYZE outbox, outbox_state,"
    " outbox_foreign"
)


@pytest.mark.parametrize("name", ["claim_all", "claim", "foreign_claim_all", "foreign_claim"])
@pytest.mark.parametrize("before", ["SELECT 1", FILLED], ids=["empty", "nearly empty"])
@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
def test_the_plan_of_an_empty_table_is_good_for_a_full_one(
    database: str, name: str, before: str, mode: str
) -> None:
    """Reading the whole table is cheapest while there is nothing in it.

    1,000 messages took half a second later on.
    """
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", query(name))))
    statement = re.sub(r"%\((\w+)\)s", lambda found: f"${names.index(found[1]) + 1}", query(name))
    types = ", ".join(TYPES.get(each, "unknown") for each in names)
    values = ", ".join(GIVEN[each] for each in names)
    with psycopg.connect(database) as connection:
        connection.execute(before.encode())
        connection.execute(query("by_index"))
        connection.execute(f"SET LOCAL plan_cache_mode = {mode}".encode())
        connection.execute(f"PREPARE claims ({types}) AS {statement}".encode())
        plan = "\n".join(
            line for (line,) in connection.execute(f"EXPLAIN EXECUTE claims ({values})".encode())
        )
        connection.execute(query("as_planned"))
        assert connection.execute("SHOW enable_seqscan").fetchone() == ("on",)
    assert "Seq Scan" not in plan, plan
    assert "Index" in plan
