"""WAL bytes for each message: of the insert, of a relay's book-keeping, of a status.

The status is in the row or beside it.
"""

from __future__ import annotations

from typing import Any

import psycopg

from streams.database import query

BATCH = 500
# The seed's way in its leanest form: the row itself carries its status, and one index finds what is
# pending.
IN_ROW = (
    "CREATE TABLE outbox_in_row (LIKE outbox INCLUDING DEFAULTS, status text NOT NULL DEFAULT"
    " 'pending', PRIMARY KEY (id));"
    "CREATE INDEX ON outbox_in_row (id) WHERE status = 'pending'"
)
COPY = (
    "INSERT INTO outbox_in_row (id, biz_type, topic, key, payload, created_at)"
    " SELECT id, biz_type, topic, key, payload, created_at FROM outbox WHERE id BETWEEN %s AND %s"
)
STATUS = "UPDATE outbox_in_row SET status = %s WHERE id BETWEEN %s AND %s"


def written(connection: psycopg.Connection[Any]) -> int:
    """Bytes of WAL since the server was made."""
    [(size,)] = connection.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")
    return int(size)


def statuses(url: str, rows: int) -> dict[str, float]:
    """Bytes for each message of both ways to keep a status.

    Measured with the first `rows` rows of this outbox, in batches of 500.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(IN_ROW)
        batches = [(first, first + BATCH - 1) for first in range(1, rows, BATCH)]
        for batch in batches:
            connection.execute(COPY, batch)
        bytes_of = {}
        for name in ("published", "consumed"):
            before = written(connection)
            for batch in batches:
                connection.execute(STATUS, (name, *batch))
            bytes_of[f"status in the row: {name}"] = (written(connection) - before) / rows
        before = written(connection)
        for first, last in batches:
            ids = list(range(first, last + 1))
            record = {"partitions": [0] * BATCH, "offsets": ids, "first": first, "last": last}
            connection.execute(
                query("claim_all"),
                {"topic": "chat-history", "checked": False, "ids": ids, **record},
            )
        bytes_of["row in outbox_state"] = (written(connection) - before) / rows
        return bytes_of
