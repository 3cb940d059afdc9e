"""Which tries of runs may call handlers beside one another, so that a death can be attributed.

Runs of partitions that nobody suspects do as they like. Of the suspects one at a time calls
handlers. A message that is tried alone is the only one in its process that a handler has: whoever
dies then died of it, or was killed from outside.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from streams.worker.driver.dispatcher import Slots

# Seconds without a handler's call after which a suspect that waits for a lock lets another one go
# first
LEND = 0.25


class Displaced(Exception):
    """Another suspect calls handlers now: this try has to begin again, when it may."""


class Exclusion:
    """One process's permits to call handlers."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._sharing = 0
        self._holder: Permit | None = None
        self._queue: deque[Permit] = deque()
        self._opened = asyncio.Event()
        self._opened.set()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Handlers may be called within this, but none beside a message that is tried alone."""
        while not self._opened.is_set():
            async with self._slots.away():
                await self._opened.wait()
        self._sharing += 1
        try:
            yield
        finally:
            self._sharing -= 1
            self._advance()

    def permit(self, *, alone: bool, patience: float = LEND) -> Permit:
        """An async context manager around one try of a suspect."""
        return Permit(self, self._slots, alone, patience)

    def _may(self, permit: Permit) -> bool:
        return self._holder is None and not (permit.alone and self._sharing)

    def _advance(self) -> None:
        if self._queue and self._may(self._queue[0]):
            self._holder = self._queue.popleft()
            self._holder.granted.set()
        first = self._holder or (self._queue[0] if self._queue else None)
        if first is not None and first.alone:
            self._opened.clear()
        else:
            self._opened.set()


class Permit:
    """What a suspect's try needs to call handlers.

    It is lent to others when the suspect waits too long before it calls one.
    """

    def __init__(self, exclusion: Exclusion, slots: Slots, alone: bool, patience: float) -> None:
        self._exclusion, self._slots, self.alone, self._patience = exclusion, slots, alone, patience
        self.granted = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        exclusion = self._exclusion
        exclusion._queue.append(self)
        exclusion._advance()
        try:
            if not self.granted.is_set():
                async with self._slots.away():
                    await self.granted.wait()
        except BaseException:
            self._give_back()
            raise
        self._timer = asyncio.get_running_loop().call_later(self._patience, self._give_back)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop_timer()
        self._give_back()

    def claim(self) -> None:
        """A handler is about to be called.

        Displaced when others went first, which one more try makes up for.
        """
        self._stop_timer()
        if self._exclusion._holder is self:
            return
        if self._exclusion._queue or not self._exclusion._may(self):
            raise Displaced("another suspect calls handlers")
        self._exclusion._holder = self
        self._exclusion._advance()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_back(self) -> None:
        if self in self._exclusion._queue:
            self._exclusion._queue.remove(self)
        if self._exclusion._holder is self:
            self._exclusion._holder = None
        self._exclusion._advance()
