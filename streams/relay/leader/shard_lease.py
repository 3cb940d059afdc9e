"""A relay's share of the shards: conversations by the hash of their key, one leader a shard.

Relays that share the work hold the lock of their name together (shared); whoever leads alone holds
it alone, whatever its mode. How many hold it says how many shards are due to each: who has more
gives back, who has less takes what is free.
"""

from __future__ import annotations

import asyncio

from streams.database import locks, query
from streams.relay.leader.lock import Leadership
from streams.relay.postgres.snapshot import RelaySnapshot
from streams.settings import Settings


def due(shards: int, relays: int) -> int:
    """The most shards that one of so many relays leads: one at least."""
    return -(-shards // max(1, relays))


class ShardLease(Leadership):
    """A session that leads some shards, `shards`.

    When a look shows that this has to change `turn` says so; `deal` does it. It leads none while
    another one leads alone, or relays with another number of shards are running.
    """

    def __init__(self, settings: Settings, mode: str) -> None:
        super().__init__(settings, mode)
        self._name, self._count = settings.relay.name, settings.relay.shards
        self._taken = False
        # The session and its monitor deal on one connection, where a lock can be taken twice.
        self._dealing = asyncio.Lock()
        self.shards: list[int] = []

    @property
    def first(self) -> bool:
        """Whether it does what is done once for all shards: the leader of the first one does."""
        return 0 in self.shards

    async def take(self) -> bool:
        """Join the relays of this name.

        The first one settles how many shards there are, and where they begin.
        """
        names = {"name": self._name, "shards": self._count}
        async with self._connection.transaction():
            lock = {"lock": locks.joining(self._name)}
            await self._connection.execute(query("lock_in_turn"), lock)
            others = await self._sharing()
            running = (
                await self._value("shards_running", name=self._name) if others else self._count
            )
            if running != self._count:
                self.why_not = (
                    f"relays of this name run with {running} shards,"
                    f" here relay.shards is {self._count}"
                )
                return False
            if not await self._value("lock_shared", lock=locks.relay(self._name)):
                return False
            if not others:
                await self._connection.execute(query("drop_shards"), names)
                await self._connection.execute(query("make_shards"), names)
        self._taken = True
        return True

    async def reassign(self) -> None:
        """Give back what is too much, and take what is free and due.

        Whoever leads the first shard keeps it: one is due to each, and the others go before it.
        """
        async with self._dealing:
            most = await self._due()
            for shard in self.shards[most:]:
                await self._value("lock_give", lock=locks.shard(self._name, shard))
            del self.shards[most:]
            await self._take_free(most)
            self.turn = None

    async def _look(self) -> RelaySnapshot:
        snapshot = await super()._look()
        if self._taken:
            async with self._dealing:
                most = await self._due()
                if len(self.shards) > most or await self._take_free(most):
                    self.turn = "shards are dealt anew"
        return snapshot

    async def _due(self) -> int:
        return due(self._count, await self._sharing())

    async def _sharing(self) -> int:
        """How many relays share the work, those of an earlier release too."""
        sharing = int(await self._value("relays_sharing", name=self._name))
        return sharing + int(await self._value("relays_earlier", name=self._name))

    async def _take_free(self, most: int) -> bool:
        """Whether there was a shard to take."""
        had = len(self.shards)
        for shard in range(self._count):
            if len(self.shards) >= most:
                break
            if shard not in self.shards and await self._value(
                "lock_alone", lock=locks.shard(self._name, shard)
            ):
                self.shards.append(shard)
        self.shards.sort()
        return len(self.shards) > had
