"""Some shards of the outbox read by polling, while other relays read the rest."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any

import psycopg

from streams.database import query
from streams.relay.source.poll import PASS_ROWS, PollSource
from streams.relay.source.rows import Row


class ShardSource(PollSource):
    """A PollSource of the shards `mine` out of `shards`.

    A pass goes through all ids and takes the rows of these.

    Its gaps are ids that are not visible to anybody. They are looked for first, rows after them: a
    row that becomes visible in between is read and no gap, or a gap and read in the next pass.
    """

    def __init__(self, url: str, *, shards: int, mine: Sequence[int], **options: Any) -> None:
        super().__init__(url, **options)
        self._shards, self._mine = shards, list(mine)
        # Where each shard is; None: the shard of another relay.
        self._after: list[int | None] = [None] * shards
        self._lowest = 0

    @property
    def value(self) -> int:
        """The floor of all shards."""
        return self._lowest

    async def look(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Save where these shards are, and see where all of them are."""
        self._lowest = max(self._lowest, await self._save(connection))

    async def _begin(self) -> int:
        parameters = {"name": self._name, "mine": self._mine}
        for shard, floor in await (
            await self._connection.execute(query("shard_floors"), parameters)
        ).fetchall():
            self._after[shard] = floor
        return min(floor for floor in self._after if floor is not None)

    async def _end(self) -> None:
        floor = await self._save(self._connection)
        await self._connection.execute(query("raise_floor"), {"relay": self._name, "floor": floor})

    async def _save(self, connection: psycopg.AsyncConnection[Any]) -> int:
        who = {"leader": f"{socket.gethostname()}:{os.getpid()}", "pid": os.getpid()}
        these = {
            "name": self._name,
            "shards": self._shards,
            "mine": self._mine,
            "floor": self._floor,
        }
        row = await (await connection.execute(query("save_shards"), {**these, **who})).fetchone()
        return int(row[0]) if row else 0

    async def _read(self) -> tuple[list[Row], bool]:
        where = {"after": self._after, "shards": self._shards}
        most = PASS_ROWS * self._shards // len(self._mine)
        count, last, *unseen = await self._window(most)
        newer: list[Row] = []
        whole = True
        if count:
            newer, whole = await self._select(
                "shard_newer", newest=self._gaps.newest, last=last, **where
            )
            last = last if whole else newer[-1].id
        older: list[Row] = []
        lows, highs = map(list, self._gaps.ranges)
        if lows:
            gaps = {"lows": lows, "highs": highs, "first": lows[0], "last": highs[-1], **where}
            older, all_older = await self._select("shard_gaps", **gaps)
            self._gaps.read([row.id for row in older])
            self._gaps.read(await self._others({"most": most, **gaps}))
            if not all_older:
                # A newer row may have to wait for one that is still unread.
                return older, False
        if count:
            self._gaps.look(last, *unseen)
            self._gaps.read([row.id for row in newer])
        return older + newer, whole and count < most

    async def _window(self, most: int) -> tuple[Any, ...]:
        parameters = {"newest": self._gaps.newest, "most": most}
        row = await (await self._connection.execute(query("shard_window"), parameters)).fetchone()
        return row or (0, None, [], [])

    async def _others(self, gaps: dict[str, Any]) -> list[int]:
        rows = await (await self._connection.execute(query("shard_others"), gaps)).fetchall()
        return [row[0] for row in rows]
