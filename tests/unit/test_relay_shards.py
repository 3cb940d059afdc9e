"""How many of the shards are due to each relay, and how one takes them."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.database import locks
from streams.relay.leader.lock import Leadership
from streams.relay.leader.shard_lease import ShardLease, due
from streams.settings import load

ENVIRON = {"STREAMS_RELAY__MODE": "poll", "STREAMS_RELAY__SHARDS": "4"}


@given(st.integers(1, 64), st.integers(0, 70))
def test_the_parts_hold_all_shards_and_none_could_be_smaller(shards: int, relays: int) -> None:
    parts = due(shards, relays)
    assert parts * max(1, relays) >= shards
    assert (parts - 1) * max(1, relays) < shards


class Alone(ShardLease):
    """A lease of the only relay, whose session locks are counted as PostgreSQL counts them."""

    locks: Counter[int]

    async def _value(self, name: str, /, **parameters: Any) -> Any:
        await asyncio.sleep(0)
        if name == "lock_alone":
            self.locks[parameters["lock"]] += 1
        if name == "lock_give":
            self.locks[parameters["lock"]] -= 1
        return {"relays_sharing": 1, "relays_earlier": 0}.get(name, True)


async def test_a_session_and_its_monitor_never_take_one_shard_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def look(lease: Leadership) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(Leadership, "_look", look)
    lease = Alone(load(environ=ENVIRON), "poll")
    lease._taken, lease.locks = True, Counter()
    await asyncio.gather(lease.reassign(), lease.look(), lease.look())
    assert lease.shards == [0, 1, 2, 3]
    assert lease.locks == {locks.shard(lease._name, number): 1 for number in range(4)}
