"""One answer for all who ask for the same thing within a second; the last one when none comes.

Fifty viewers cost what one costs. A request waits at most 0.8 s for a new answer; then it gets the
last one with its age, while the new one is still on its way.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from streams.errors import ServiceUnreachable

T = TypeVar("T")

FRESH_SECONDS = 1.0
WAIT_SECONDS = 0.8
FIRST_SECONDS = 3.0  # there is no last one yet: templates are read, a connection is opened
KEPT = 200  # answers, each at most some 60 kB
KEPT_SECONDS = 600.0  # an older one tells nobody anything


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What was found, how many seconds ago, and why it is not newer (None: it is fresh)."""

    value: T
    age: float
    why_old: str | None = None


class _Entry:
    def __init__(self) -> None:
        self.work: asyncio.Future[Any] | None = None
        self.value: Any = None
        self.at = -KEPT_SECONDS  # monotonic; of the last value
        self.error: Exception | None = None
        self.failed_at = -FRESH_SECONDS


class Shared:
    """Answers by key; `start` in `get` begins the work for a new one."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()

    async def get(self, key: Hashable, start: Callable[[], asyncio.Future[T]]) -> Answer[T]:
        """A fresh answer, or the last one; the work's error when there is neither."""
        entry = self._entry(key)
        now = time.monotonic()
        if now - entry.at < FRESH_SECONDS:
            return Answer(entry.value, now - entry.at)
        if entry.work is None and now - entry.failed_at >= FRESH_SECONDS:
            entry.work = start()
            entry.work.add_done_callback(lambda done: _settle(entry, done))
        if entry.work is not None:
            await asyncio.wait(
                {entry.work},
                timeout=WAIT_SECONDS if now - entry.at < KEPT_SECONDS else FIRST_SECONDS,
            )
            # The work's own callback comes after ours: whoever waited has it settled here.
            if entry.work is not None and entry.work.done():
                _settle(entry, entry.work)
        now = time.monotonic()
        age = now - entry.at
        if age < FRESH_SECONDS:
            return Answer(entry.value, age)
        slow = ServiceUnreachable("PostgreSQL takes longer to answer than a page waits")
        error = entry.error if entry.work is None and entry.error is not None else slow
        if age < KEPT_SECONDS and isinstance(error, ServiceUnreachable):
            return Answer(entry.value, age, str(error))
        raise error

    def renew(self) -> None:
        """Forget what was looked up, for somebody did something.

        What was found before that, or was not, or is looked for now, is not fresh.
        """
        for entry in self._entries.values():
            entry.at -= FRESH_SECONDS
            entry.failed_at -= FRESH_SECONDS
            entry.work = None

    def last(self, key: Hashable) -> Answer[Any] | None:
        """The last answer, without asking for a new one."""
        entry = self._entries.get(key)
        age = time.monotonic() - entry.at if entry else KEPT_SECONDS
        return Answer(entry.value, age) if entry and age < KEPT_SECONDS else None

    def _entry(self, key: Hashable) -> _Entry:
        entry = self._entries.setdefault(key, _Entry())
        self._entries.move_to_end(key)
        while len(self._entries) > KEPT:
            self._entries.popitem(last=False)
        return entry


def _settle(entry: _Entry, done: asyncio.Future[Any]) -> None:
    if entry.work is not done:
        return
    entry.work = None
    if done.cancelled():
        entry.error, entry.failed_at = ServiceUnreachable("the pages are closing"), time.monotonic()
    elif (error := done.exception()) is not None:
        entry.error = error if isinstance(error, Exception) else RuntimeError(type(error).__name__)
        entry.failed_at = time.monotonic()
    else:
        entry.value, entry.at, entry.error = done.result(), time.monotonic(), None
