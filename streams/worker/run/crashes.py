"""The notes of processes that may die, in PostgreSQL: which partition, which message, how often."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, LiteralString

from streams.database import query
from streams.worker.database.database import REACH, Database
from streams.worker.driver.suspicion import Strikes
from streams.worker.run.suspects import Place, parameters


class CrashNotes:
    """Each call is one small transaction beside those of the runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take(self, owner: str, places: Sequence[Place]) -> dict[Place, Strikes]:
        """Make these partitions the owner's; what was noted of them before."""
        topics, partitions = [topic for topic, _ in places], [partition for _, partition in places]
        rows = await self._do("take_partitions", owner=owner, topics=topics, partitions=partitions)
        return {(topic, partition): Strikes(*strikes) for topic, partition, *strikes in rows}

    async def put(self, owner: str, place: Place, strikes: Strikes, offset: int) -> bool:
        """Note these strikes, and the first offset of the run.

        False when the partition is not this owner's any more.
        """
        return bool(await self._do("put_strikes", **parameters(owner, place, strikes, offset)))

    async def hand_on(self, owned: Sequence[tuple[str, Place]]) -> None:
        """Write down that these were given up in order, by an owner who did not suspect them.

        It is done soon or not at all, for a rebalance waits for it.
        """
        async with asyncio.timeout(REACH):
            await self._do(
                "hand_on",
                owners=[owner for owner, _ in owned],
                topics=[topic for _, (topic, _) in owned],
                partitions=[partition for _, (_, partition) in owned],
            )

    async def strike(self, topic: str, partition: int, ids: Sequence[int]) -> dict[int, int]:
        """One strike more for each of these messages, and how many each had before."""
        rows = await self._do("strike", topic=topic, partition=partition, ids=list(ids))
        return dict(rows)

    async def withdraw(self, topic: str, ids: Sequence[int]) -> None:
        """One strike less."""
        async with asyncio.timeout(REACH):
            await self._do("withdraw_strikes", topic=topic, ids=list(ids))

    async def _do(self, name: LiteralString, **values: Any) -> list[tuple[Any, ...]]:
        return await self._database.read(query(name), values)
