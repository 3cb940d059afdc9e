"""The demo's live line and `streams status` count right.

Whatever is committed, relayed, persisted or set aside.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import Connection

from streams.cli import progress
from streams.database import connect, sync_engine
from streams.dev.counters import Counters, Counts
from streams.operate.look import look
from streams.operate.relay_status import standing

ENQUEUE = """
    SELECT outbox_enqueue('chat_history_persist', 'c' || n,
                          json_build_object('conversation_id', 'c' || n))
    FROM generate_series(1, %s) AS n
"""


@pytest.fixture
def business(database: str) -> Iterator[psycopg.Connection]:
    """A connection of business code, with a relay that has relayed nothing."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO relay_position (name, mode, floor, pid, heartbeat)"
            " VALUES ('outbox', 'cdc', 0, 4711, now())"
        )
        yield connection


@pytest.fixture
def asking(database: str) -> Iterator[Connection]:
    """The connection of `streams status`."""
    engine = sync_engine(database)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def enqueue(business: psycopg.Connection, count: int) -> list[int]:
    return [row[0] for row in business.execute(ENQUEUE, [count]).fetchall()]


def settle(
    business: psycopg.Connection, ids: list[int], status: str = "consumed", topic: str | None = None
) -> None:
    business.execute(
        "INSERT INTO outbox_state (outbox_id, status, topic, key)"
        " SELECT unnest(%s::bigint[]), %s, %s, 'c'",
        [ids, status, topic],
    )


def floor(business: psycopg.Connection, outbox_id: int) -> None:
    business.execute("UPDATE relay_position SET floor = %s", [outbox_id])


async def test_only_what_is_written_since_the_start_is_counted_and_each_message_once(
    database: str, business: psycopg.Connection
) -> None:
    old = enqueue(business, 3)
    counters = Counters()
    async with await connect(database) as connection:
        await counters.begin(connection)
        assert await counters.step(connection) == Counts()
        ids = enqueue(business, 10)
        counts = await counters.step(connection)
        assert (counts.committed, counts.relayed, counts.persisted, counts.lag) == (10, 0, 0, 10)
        assert counts.lag_seconds > 0
        floor(business, ids[5])
        settle(business, [*old, *ids[:2], ids[3]])
        for _ in range(2):
            counts = await counters.step(connection)
            assert (counts.committed, counts.relayed, counts.persisted) == (10, 6, 3)
        settle(business, [ids[2], ids[4]], status="dead")
        settle(business, ids[5:])
        floor(business, ids[-1])
        counts = await counters.step(connection)
        assert (counts.committed, counts.relayed, counts.persisted, counts.lag_seconds) == (
            10,
            10,
            8,
            0.0,
        )


async def test_a_message_persisted_above_the_floor_was_relayed(
    database: str, business: psycopg.Connection
) -> None:
    counters = Counters()
    async with await connect(database) as connection:
        await counters.begin(connection)
        settle(business, enqueue(business, 4))
        counts = await counters.step(connection)
    assert (counts.committed, counts.relayed, counts.persisted, counts.lag) == (4, 4, 4, 0)


async def test_a_rolled_back_message_is_not_counted(
    database: str, business: psycopg.Connection
) -> None:
    counters = Counters()
    async with await connect(database) as connection:
        await counters.begin(connection)
        with business.transaction(force_rollback=True):
            enqueue(business, 5)
        floor(business, enqueue(business, 1)[0])
        assert (await counters.step(connection)).relayed == 1


def test_status_says_where_the_messages_are(
    asking: Connection, business: psycopg.Connection
) -> None:
    ids = enqueue(business, 10)
    floor(business, ids[7])
    settle(business, ids[:2])
    settle(business, [ids[2]], "retrying", "t")
    settle(business, ids[3:5], "parked", "t")
    settle(business, [ids[5]], "dead")
    settle(business, [ids[8]])
    assert progress.messages(look(asking).totals) == {
        "pending": 1,
        "published": 2,
        "retrying": 1,
        "parked": 2,
        "replaying": 0,
        "held": 0,
        "dead": 1,
    }


def test_status_counts_a_backlog_no_further_than_its_cap(
    asking: Connection, business: psycopg.Connection
) -> None:
    enqueue(business, progress.CAP + 500)
    assert progress.messages(look(asking).totals)["pending"] == progress.CAP + 1


def test_status_knows_leader_standby_and_a_relay_without_leader(
    asking: Connection, business: psycopg.Connection
) -> None:
    ids = enqueue(business, 10)
    floor(business, ids[3])
    leader, standby = progress.relays(standing(asking), [4711, 4712])
    assert (leader["pid"], leader["mode"], leader["leader"], leader["lag_rows"]) == (
        4711,
        "cdc",
        True,
        6,
    )
    assert leader["lag_seconds"] > 0
    assert standby == {
        "pid": 4712,
        "mode": "cdc",
        "leader": False,
        "lag_rows": None,
        "lag_seconds": None,
    }
    business.execute("UPDATE relay_position SET heartbeat = now() - interval '1 minute'")
    asking.rollback()
    [nobody] = progress.relays(standing(asking), [])
    assert (nobody["pid"], nobody["leader"], nobody["lag_rows"]) == (None, False, 6)
