"""Sequences are raised while the business draws from them, and nothing is drawn twice."""

from __future__ import annotations

from itertools import cycle, takewhile
from threading import Thread

import psycopg
import pytest

from streams.database import query

DRAWN = 300_000
DRAW = "SELECT array_agg(nextval(pg_get_serial_sequence(%s, 'id'))) FROM generate_series(1, %s)"
LAST = "SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence(%s, 'id')), 0)"
ACT = (
    "INSERT INTO outbox_actions (id, act, who, what) OVERRIDING SYSTEM VALUE"
    " VALUES (%s, 'test', 'me', '{}') ON CONFLICT DO NOTHING"
)


@pytest.mark.parametrize(
    "table", [pytest.param("outbox", marks=pytest.mark.long), "outbox_actions"]
)
def test_nothing_is_drawn_twice_when_ids_are_skipped_meanwhile(database: str, table: str) -> None:
    drawn: list[int] = []

    def draw() -> None:
        with psycopg.connect(database) as connection:
            [ids] = connection.execute(DRAW, (table, DRAWN)).fetchone() or [[]]
            drawn.extend(ids)

    business = Thread(target=draw)
    business.start()
    with psycopg.connect(database, autocommit=True) as connection:
        # How far the business comes between the question and the act is the machine's affair.
        for gap in takewhile(lambda _: business.is_alive(), cycle(range(20, 1000, 10))):
            [last] = connection.execute(LAST, (table,)).fetchone() or [0]
            if table == "outbox":
                connection.execute(query("skip_ids"), {"newest": last + gap})
            else:
                connection.execute(ACT, (last + gap,))
                connection.execute(query("skip_drawn"))
    business.join()
    assert len(drawn) == len(set(drawn)) == DRAWN


@pytest.mark.parametrize("ahead", [7, 5_000_000])
def test_ids_are_skipped_up_to_the_one_that_is_asked_for_and_never_back(
    database: str, ahead: int
) -> None:
    with psycopg.connect(database) as connection:
        for newest in (ahead, 3):
            assert connection.execute(query("skip_ids"), {"newest": newest}).fetchone() == (ahead,)
        assert connection.execute("SELECT nextval('outbox_id_seq')").fetchone() == (ahead + 1,)
        connection.execute(ACT, (ahead,))
        for _ in range(2):
            connection.execute(query("skip_drawn"))
        assert connection.execute(LAST, ("outbox_actions",)).fetchone() == (ahead,)
