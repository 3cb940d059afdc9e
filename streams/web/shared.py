"""One answer for all who ask for the same thing within a second; the last one when none comes.

Fifty viewers cost what one costs; and where they look at so many things that making the answers
takes more than its share of a processor, each is one for all a little longer. A request waits at
most 0.8 s for a new answer; then it gets the last one with its age, while the new one is still on
its way.
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
MOST_FRESH_SECONDS = 3.0
SHARE = 0.01  # of a processor, for making all answers of a process
WINDOW_SECONDS = 5.0
WAIT_SECONDS = 0.8
FIRST_SECONDS = 3.0  # there is no last one yet: templates are read, a connection is opened
KEPT = 200  # answers, each of a page of at most some 60 kB
KEPT_SECONDS = 600.0  # an older one tells nobody anything


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What was found, how many seconds ago, and why it is not newer (None: it is fresh)."""

    value: T
    age: float
    why_old: str | None = None


@dataclass(slots=True, eq=False)
class _Work:
    """A new answer on its way, begun after so many acts."""

    future: asyncio.Future[Any]
    acts: int
    settled: bool = False


class _Entry:
    def __init__(self) -> None:
        self.asked = time.monotonic()
        self.work: _Work | None = None
        self.value: Any = None
        self.at = -KEPT_SECONDS  # monotonic; of the last value
        self.acts = -1  # after how many it was looked for
        self.error: Exception | None = None
        self.failed_at = -FRESH_SECONDS
        self.failed_acts = -1

    def fresh(self, acts: int, seconds: float) -> bool:
        """Whether the last value is one for whoever asks after so many acts."""
        return self.acts >= acts and time.monotonic() - self.at < seconds


class Budget:
    """For how many seconds an answer is fresh, so that all together take no more than SHARE.

    `spent` says how much processor time making them has taken so far.
    """

    def __init__(
        self, spent: Callable[[], float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._spent, self._clock = spent, clock
        self._at, self._before, self._seconds = clock(), spent(), FRESH_SECONDS

    @property
    def seconds(self) -> float:
        """As it was in the last seconds, what is asked for being the same."""
        elapsed = self._clock() - self._at
        if elapsed >= WINDOW_SECONDS:
            spent = self._spent()
            wanted = (spent - self._before) / elapsed * self._seconds / SHARE
            self._seconds = min(MOST_FRESH_SECONDS, max(FRESH_SECONDS, wanted))
            self._at, self._before = self._at + elapsed, spent
        return self._seconds


class Shared:
    """Answers by key; `start` in `get` begins the work for a new one.

    What nobody has asked for of late is forgotten. `spent` is as `Budget` has it.
    """

    def __init__(self, spent: Callable[[], float] = lambda: 0.0) -> None:
        self._budget = Budget(spent)
        self._acts = 0
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()

    async def get(self, key: Hashable, start: Callable[[], asyncio.Future[T]]) -> Answer[T]:
        """A fresh answer, or the last one; the work's error when there is neither."""
        entry, acts = self._entry(key), self._acts
        now = time.monotonic()
        seconds = self._budget.seconds
        if entry.fresh(acts, seconds):
            return Answer(entry.value, now - entry.at)
        work = entry.work
        if work is not None and work.acts < acts:
            work = None  # whoever asked before the last act waits for that one
        failed = entry.failed_acts >= acts and now - entry.failed_at < FRESH_SECONDS
        if work is None and not failed:
            work = entry.work = _begun(entry, start(), acts)
        if work is not None:
            await asyncio.wait(
                {work.future},
                timeout=WAIT_SECONDS if now - entry.at < KEPT_SECONDS else FIRST_SECONDS,
            )
            # The work's own callback comes after ours: whoever waited has it settled here.
            if work.future.done():
                _settle(entry, work)
        age = time.monotonic() - entry.at
        if entry.fresh(acts, seconds):
            return Answer(entry.value, age)
        slow = ServiceUnreachable("PostgreSQL takes longer to answer than a page waits")
        ended = work is None or work.future.done()
        error = entry.error if ended and entry.error is not None else slow
        if age < KEPT_SECONDS and isinstance(error, ServiceUnreachable):
            return Answer(entry.value, age, str(error))
        raise error

    def renew(self) -> None:
        """From now on nothing is fresh that was looked for before: somebody did something.

        Whoever waits already still gets what they wait for.
        """
        self._acts += 1

    def last(self, key: Hashable) -> Answer[Any] | None:
        """The last answer, without asking for a new one."""
        entry = self._entries.get(key)
        age = time.monotonic() - entry.at if entry else KEPT_SECONDS
        return Answer(entry.value, age) if entry and age < KEPT_SECONDS else None

    def _entry(self, key: Hashable) -> _Entry:
        entry = self._entries.setdefault(key, _Entry())
        entry.asked = now = time.monotonic()
        self._entries.move_to_end(key)
        while (
            len(self._entries) > KEPT
            or now - next(iter(self._entries.values())).asked >= KEPT_SECONDS
        ):
            self._entries.popitem(last=False)
        return entry


def _begun(entry: _Entry, future: asyncio.Future[Any], acts: int) -> _Work:
    work = _Work(future, acts)
    future.add_done_callback(lambda _: _settle(entry, work))
    return work


def _settle(entry: _Entry, work: _Work) -> None:
    """Take what it found, unless what was begun after a later act was there before."""
    if work.settled:
        return
    work.settled = True
    if entry.work is work:
        entry.work = None
    done, now = work.future, time.monotonic()
    error: Exception | None = None
    if done.cancelled():
        error = ServiceUnreachable("the pages are closing")
    elif (raised := done.exception()) is not None:
        error = raised if isinstance(raised, Exception) else RuntimeError(type(raised).__name__)
    elif work.acts >= entry.acts:
        entry.value, entry.at, entry.acts, entry.error = done.result(), now, work.acts, None
    if error is not None and work.acts >= max(entry.acts, entry.failed_acts):
        entry.error, entry.failed_at, entry.failed_acts = error, now, work.acts
