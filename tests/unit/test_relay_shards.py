"""How many of the shards are due to each relay."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streams.relay.leader.shard_lease import due


@given(st.integers(1, 64), st.integers(0, 70))
def test_the_parts_hold_all_shards_and_none_could_be_smaller(shards: int, relays: int) -> None:
    parts = due(shards, relays)
    assert parts * max(1, relays) >= shards
    assert (parts - 1) * max(1, relays) < shards
