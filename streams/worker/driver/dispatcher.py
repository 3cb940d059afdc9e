"""One lane a partition: several partitions make progress at once, never two items of one partition.

What waits is worked together: while traffic is thin, one transaction serves every partition that
has something, instead of one each. A group that fails is taken apart, so that no partition waits
for another one's trouble.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast

from streams.groups import TaskGroup

T = TypeVar("T")

# Seconds that little work may wait for a transaction under way to end, to be gathered meanwhile
GATHER = 0.02
ENOUGH = 0.25  # the part of a full group that does not wait for it


class Slots:
    """How many transactions a process may have under way, whatever their topics."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.free = asyncio.Semaphore(count)
        self.resting: set[asyncio.Task[Any] | None] = set()
        self.freed: list[Callable[[], None]] = []

    async def rest(self, seconds: float) -> None:
        """Sleep in the middle of some work, and let others have the slot meanwhile."""
        async with self.away():
            await asyncio.sleep(seconds)

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """Within this some work waits for something, and others have its slot."""
        task = asyncio.current_task()
        self.resting.add(task)
        self.free.release()
        try:
            for dispatch in self.freed:
                dispatch()
            yield
        finally:
            await self.free.acquire()
            self.resting.discard(task)


@dataclass(eq=False, slots=True)
class _Waiting(Generic[T]):
    lane: Hashable
    source: Hashable
    item: T
    weight: int
    alone: bool


class Dispatcher(Generic[T]):
    """Works groups of items, at most `slots` at once.

    `most` is the weight of a group, which one item may exceed.

    `work(items)` says whether it is done; otherwise its items are worked one by one.
    `full(source)` and `room(source)` tell where items come from to hold back and to go on.
    """

    def __init__(
        self,
        work: Callable[[Sequence[T]], Awaitable[bool]],
        slots: Slots,
        most: int,
        full: Callable[[Hashable], None],
        room: Callable[[Hashable], None],
    ) -> None:
        self._work, self._slots, self._most, self._full, self._room = work, slots, most, full, room
        self._lanes: dict[Hashable, deque[_Waiting[T]]] = {}
        self._busy: set[Hashable] = set()
        self._weights: Counter[Hashable] = Counter()
        self._running: set[asyncio.Task[None]] = set()
        slots.freed.append(self._dispatch)
        self._timer: asyncio.TimerHandle | None = None
        self._tasks = TaskGroup()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._dispatch(waited=not self._active)
            await self._tasks.__aexit__(kind, error, traceback)
        finally:
            self._cancel_timer()
            self._slots.freed.remove(self._dispatch)

    def submit(
        self, lane: Hashable, source: Hashable, item: T, weight: int, *, alone: bool = False
    ) -> None:
        """Queue the item behind the others of its lane; one that is `alone` shares no group."""
        self._lanes.setdefault(lane, deque()).append(_Waiting(lane, source, item, weight, alone))
        self._weights[source] += weight
        if self._weights[source] >= self._most:
            self._full(source)
        self._dispatch()

    @property
    def _active(self) -> int:
        """How many groups are worked on, but for those that wait for something."""
        return len(self._running - self._slots.resting)

    def _dispatch(self, *, waited: bool = False) -> None:
        if waited:
            self._cancel_timer()
        while self._active < self._slots.count:
            group = self._gather()
            if not group:
                return
            enough = (
                group[0].alone or sum(waiting.weight for waiting in group) >= self._most * ENOUGH
            )
            if not enough and not waited:
                # What one fetch brought comes run by run: with nothing under way the rest of it is
                # there in a moment.
                if self._timer is None:
                    wait = GATHER if self._active else 0
                    self._timer = asyncio.get_running_loop().call_later(
                        wait, partial(self._dispatch, waited=True)
                    )
                return
            self._start(group)
            waited = False

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _gather(self) -> list[_Waiting[T]]:
        """What could be worked together now, in the order in which lanes began to wait."""
        group: list[_Waiting[T]] = []
        weight = 0
        for lane, waiting in self._lanes.items():
            if lane in self._busy:
                continue
            for item in waiting:
                if group and (item.alone or weight + item.weight > self._most):
                    break
                group.append(item)
                weight += item.weight
                if item.alone:
                    return group
            if weight >= self._most:
                break
        return group

    def _start(self, group: list[_Waiting[T]]) -> None:
        lanes = {item.lane for item in group}
        for item in group:
            self._lanes[item.lane].popleft()
            before = self._weights[item.source]
            self._weights[item.source] -= item.weight
            if before >= self._most > self._weights[item.source]:
                self._room(item.source)
        for lane in lanes:
            if not self._lanes[lane]:
                del self._lanes[lane]
        self._busy |= lanes
        self._running.add(self._tasks.create_task(self._run(group, lanes), name=f"lanes {lanes}"))

    async def _run(self, group: list[_Waiting[T]], lanes: set[Hashable]) -> None:
        async with self._slots.free:
            done = await self._work([waiting.item for waiting in group])
        if not done:
            self._take_apart(group)
        self._busy -= lanes
        self._running.discard(cast("asyncio.Task[None]", asyncio.current_task()))
        self._dispatch(waited=not self._active)

    def _take_apart(self, group: list[_Waiting[T]]) -> None:
        for item in reversed(group):
            item.alone = True
            self._lanes.setdefault(item.lane, deque()).appendleft(item)
            self._weights[item.source] += item.weight
