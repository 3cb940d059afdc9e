"""One lane a partition: several partitions make progress at once, never two runs of one partition."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")

FULL = 2  # waiting items of one lane from which its partition is held back


class Lanes(Generic[T]):
    """Works items of a lane one after the other, and at most `slots` lanes at once.

    `full(lane)` and `room(lane)` tell the source to hold a lane back and to let it go on.
    """

    def __init__(
        self,
        work: Callable[[T], Awaitable[None]],
        slots: asyncio.Semaphore,
        full: Callable[[Hashable], None],
        room: Callable[[Hashable], None],
    ) -> None:
        self._work, self._slots, self._full, self._room = work, slots, full, room
        self._waiting: dict[Hashable, deque[T]] = {}
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._tasks.__aexit__(kind, error, traceback)

    def submit(self, lane: Hashable, item: T) -> None:
        """Queue the item behind the others of its lane."""
        waiting = self._waiting.get(lane)
        if waiting is None:
            waiting = self._waiting[lane] = deque()
            self._tasks.create_task(self._drain(lane, waiting), name=f"lane {lane}")
        waiting.append(item)
        if len(waiting) >= FULL:
            self._full(lane)

    async def _drain(self, lane: Hashable, waiting: deque[T]) -> None:
        while waiting:
            async with self._slots:
                item = waiting.popleft()
                if len(waiting) < FULL:
                    self._room(lane)
                await self._work(item)
        del self._waiting[lane]
