"""Outboxes of one database keep their locks apart; an earlier release of one is kept out.

Locks of that release hold no schema: whoever has one of them alone has it in the whole database.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest

from streams.database import connect_sync, locks, query
from streams.database.migrate import migrate
from streams.registry import configured
from streams.relay.leader.lock import Leadership
from streams.relay.leader.shard_lease import ShardLease
from streams.settings import Settings, load
from tests.conftest import Eventually

# In this database: other tests have theirs on the same server.
HELD = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
# By their names in an earlier release.
LOCKS = [
    (locks.relay("r"), "outbox-streams relay r"),
    (locks.shard("r", 0), "outbox-streams relay r shard 0"),
    (locks.joining("r"), "outbox-streams relays join r"),
    (locks.operation(7), "outbox-streams operation 7"),
    (locks.RETENTION, "outbox-streams retention"),
    (locks.AUDIT, "outbox-streams auditing"),
    (locks.NEXT_AUDIT, "outbox-streams audit waits"),
    (locks.ASKING_FOR_AUDIT, "outbox-streams audit"),
]


class Sessions:
    """Sessions on the outboxes in schemas a and b."""

    def __init__(self, url: str) -> None:
        self._url, self._stack = url, ExitStack()
        with psycopg.connect(url, autocommit=True) as connection:
            for schema in ("a", "b"):
                connection.execute(f"CREATE SCHEMA {schema}".encode())
                connection.execute(f"CREATE TABLE {schema}.outbox (id bigint)".encode())

    def on(self, schema: str) -> psycopg.Connection[Any]:
        """A session of the tenant in this schema."""
        url = f"{self._url}?options=-csearch_path%3D{schema}"
        return self._stack.enter_context(connect_sync(url))

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def sessions(database: str) -> Iterator[Sessions]:
    opened = Sessions(database)
    yield opened
    opened.close()


def asked(session: psycopg.Connection[Any], name: str, lock: str = "") -> Any:
    row = session.execute(query(name), {"lock": lock}).fetchone()
    return row and row[0]


def earlier(session: psycopg.Connection[Any], call: str, lock: str) -> bool:
    """What an earlier release is answered."""
    row = session.execute(f"SELECT {call}(hashtextextended(%s, 0))".encode(), [lock]).fetchone()
    return bool(row and row[0])


def test_each_outbox_has_locks_of_its_own_and_none_beside_an_earlier_release(
    sessions: Sessions,
) -> None:
    ours, second, others = sessions.on("a"), sessions.on("a"), sessions.on("b")
    for lock, old in LOCKS:
        assert lock == old
        assert asked(ours, "lock_alone", lock) is True, lock
        assert asked(second, "lock_alone", lock) is False, lock
        assert asked(second, "lock_shared", lock) is False, lock
        assert asked(others, "lock_alone", lock) is True, lock
        assert not earlier(second, "pg_try_advisory_lock", old), lock
        assert asked(ours, "lock_give", lock) is True, lock
        assert asked(others, "lock_give", lock) is True, lock
        assert earlier(second, "pg_try_advisory_lock", old), lock
        assert asked(ours, "lock_alone", lock) is False, lock
        assert asked(ours, "lock_shared", lock) is False, lock
        assert earlier(second, "pg_advisory_unlock", old)
        # What it was refused has left nothing behind.
        assert asked(ours, "lock_alone", lock) is True, lock
        asked(ours, "lock_give", lock)
    assert second.execute(HELD).fetchone() == (0,)


def test_an_audit_keeps_its_own_outbox_from_being_emptied(sessions: Sessions) -> None:
    auditor, ours, others = sessions.on("a"), sessions.on("a"), sessions.on("b")
    assert asked(auditor, "lock_alone", locks.AUDIT) is True
    auditor.execute(query("emptying_wait"))
    assert asked(ours, "emptying_lock") is False
    with ours.transaction(), others.transaction():
        assert asked(others, "emptying_lock") is True
        # A process of an earlier release has this one while it empties.
        assert not earlier(ours, "pg_try_advisory_lock", locks.RETENTION)
        assert asked(ours, "lock_alone", locks.RETENTION) is True
        auditor.execute(query("emptying_go_on"))
        asked(auditor, "lock_give", locks.AUDIT)
        assert asked(ours, "emptying_lock") is True  # the other one's is under way
        assert not earlier(auditor, "pg_try_advisory_lock", locks.AUDIT)
    assert earlier(auditor, "pg_try_advisory_lock", locks.AUDIT)
    assert asked(ours, "emptying_lock") is False
    asked(ours, "lock_give", locks.RETENTION)
    assert others.execute(HELD).fetchone() == (1,)


def deployed(url: str, schema: str, shards: int) -> Settings:
    environ = {
        "DATABASE_URL": f"{url}?options=-csearch_path%3D{schema}",
        "STREAMS_RELAY__NAME": "r",
        "STREAMS_RELAY__MODE": "poll",
        "STREAMS_RELAY__SHARDS": str(shards),
    }
    return load(environ=environ)


async def test_relays_of_one_name_lead_each_its_own_outbox_and_never_beside_an_earlier_release(
    database: str, eventually: Eventually
) -> None:
    name, join = "outbox-streams relay r", "outbox-streams relays join r"
    with psycopg.connect(database, autocommit=True) as old:
        old.execute("CREATE SCHEMA b")
        ours, others = deployed(database, "public", 1), deployed(database, "b", 1)
        list(migrate(others, configured(others)))
        async with Leadership(ours, "poll") as alone, Leadership(others, "poll") as tenant:
            assert await alone.take()
            assert await tenant.take()
            async with Leadership(ours, "poll") as standby, ShardLease(ours, "poll") as lease:
                assert not await standby.take()
                assert not await lease.take()
            assert not earlier(old, "pg_try_advisory_lock", name)
            # One that shares the work waits here before it begins.
            assert not earlier(old, "pg_try_advisory_lock", join)
        shared = deployed(database, "public", 2)
        # The server ends a session a moment after its client is gone.
        await eventually(lambda: earlier(old, "pg_try_advisory_lock", name))
        async with Leadership(ours, "poll") as alone, ShardLease(shared, "poll") as lease:
            assert not await alone.take()
            assert not await lease.take()
            assert earlier(old, "pg_advisory_unlock", name)
            # Two that share the work, one of an earlier release: with one shard each.
            assert await lease.take()
            assert earlier(old, "pg_try_advisory_lock_shared", name)
            assert earlier(old, "pg_try_advisory_lock", f"{name} shard 0")
            await lease.reassign()
            assert lease.shards == [1]
            assert not earlier(old, "pg_try_advisory_lock", f"{name} shard 1")
        async with Leadership(ours, "poll") as alone:
            assert not await alone.take()
            assert earlier(old, "pg_advisory_unlock_shared", name)
            await eventually(lambda: earlier(old, "pg_try_advisory_lock", join))
            assert not await alone.take()
            assert earlier(old, "pg_advisory_unlock", join)
            assert await alone.take()
