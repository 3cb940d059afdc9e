"""What one process counts: absolute values of one open bucket of ten seconds, by biz_type.

The bucket is one of the database's clock. Values are absolute and a bucket is named before
anything is sent for it, so that a flush whose answer was lost can be sent again. An example, with
counts of one biz_type:

    flush  bucket ?       nothing          the database says: it is 12:00:10 now
    flush  12:00:10       consumed 40      taken; it is still 12:00:10
    flush  12:00:10       consumed 70      taken; it is 12:00:20 now: counting begins there, from 0
    flush  12:00:20       consumed 15      no answer
    flush  12:00:20       consumed 35      not taken, it is older than 30 s; it is 12:01:00 now

What was sent without an answer may have arrived: it is not counted again. So a figure is never
more than what happened, and at most what was counted since the last flush less.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from streams.figures import histogram

COUNTED = ("consumed", "retried", "parked", "dead", "skipped")
ANY = ""
"""The biz_type of records whose own is not known any more: those that were skipped."""
UNKNOWN = "(unknown)"
"""The biz_type of messages whose own no agent has: what others invent makes no series of its own,
and may be no text that PostgreSQL can store."""


@dataclass(slots=True)
class Tally:
    """What happened to messages of one biz_type.

    `latency` is a histogram of those that were persisted.
    """

    consumed: int = 0
    retried: int = 0
    parked: int = 0
    dead: int = 0
    skipped: int = 0
    latency: list[int] = field(default_factory=lambda: [0] * histogram.SIZE)

    def add(self, other: Tally, sign: int = 1) -> None:
        """Count another one in, or out again."""
        self.consumed += sign * other.consumed
        self.retried += sign * other.retried
        self.parked += sign * other.parked
        self.dead += sign * other.dead
        self.skipped += sign * other.skipped
        for bucket, count in enumerate(other.latency):
            if count:
                self.latency[bucket] += sign * count

    @property
    def empty(self) -> bool:
        """Whether nothing happened."""
        return not (self.consumed or self.retried or self.parked or self.dead or self.skipped)


@dataclass(slots=True)
class RunTally:
    """What one transaction decided, by biz_type, true once it has committed.

    Times are epoch milliseconds.
    """

    times: dict[str, list[int]] = field(default_factory=dict)
    asides: dict[tuple[str, str], int] = field(default_factory=dict)

    def consumed(self, biz_type: str, times: Sequence[int]) -> None:
        """These messages were persisted; each is given by when it was enqueued."""
        if biz_type in self.times:
            self.times[biz_type] += times
        else:
            self.times[biz_type] = list(times)

    def aside(self, biz_type: str, status: str) -> None:
        """A message was set aside: it is retrying, parked or dead now."""
        self.asides[biz_type, status] = self.asides.get((biz_type, status), 0) + 1

    def add(self, other: RunTally) -> None:
        """Count another one in."""
        for biz_type, times in other.times.items():
            self.consumed(biz_type, times)
        for aside, count in other.asides.items():
            self.asides[aside] = self.asides.get(aside, 0) + count


class Counters:
    """The counts of this process: those of the open bucket, and all since it began.

    Messages of other biz_types than the `known` ones are counted as one; None: all are known.
    """

    def __init__(self, known: Collection[str] | None = None) -> None:
        self._known = None if known is None else frozenset((ANY, *known))
        self.total: defaultdict[str, Tally] = defaultdict(Tally)
        self._open: defaultdict[str, Tally] = defaultdict(Tally)
        self._bucket: datetime | None = None
        self._sent: dict[str, Tally] = {}

    def count(self, tally: RunTally, now: float, skipped: int = 0) -> None:
        """A transaction has committed at `now`, in epoch seconds of the database's clock."""
        millis = int(now * 1000)
        for biz_type, times in tally.times.items():
            counts = [0] * histogram.SIZE
            histogram.count_times(counts, times, millis)
            self._add(biz_type, Tally(consumed=len(times), latency=counts))
        for (biz_type, status), count in tally.asides.items():
            counted = Tally()
            setattr(counted, "retried" if status == "retrying" else status, count)
            self._add(biz_type, counted)
        if skipped:
            self._add(ANY, Tally(skipped=skipped))

    def open(self) -> tuple[datetime | None, list[dict[str, Any]]]:
        """The open bucket and its rows, as `figures_flush` takes them.

        It has no rows while no bucket is known.
        """
        if self._bucket is None:
            return None, []
        self._sent = {biz_type: _copy(tally) for biz_type, tally in self._open.items()}
        rows = [
            {name: getattr(tally, name) for name in COUNTED}
            | {"biz_type": biz_type, "latency": list(tally.latency)}
            for biz_type, tally in self._sent.items()
            if not tally.empty
        ]
        return self._bucket, rows

    def answered(self, bucket: datetime) -> None:
        """The database has answered: this is the bucket that is open now.

        Whether the last one was taken makes no difference: what was sent for a bucket that is over
        is not sent again.
        """
        if bucket == self._bucket:
            return
        for biz_type, tally in self._sent.items():
            self._open[biz_type].add(tally, -1)
        self._open = defaultdict(
            Tally, {biz_type: tally for biz_type, tally in self._open.items() if not tally.empty}
        )
        self._bucket, self._sent = bucket, {}

    def _add(self, biz_type: str, tally: Tally) -> None:
        if self._known is not None and biz_type not in self._known:
            biz_type = UNKNOWN
        self._open[biz_type].add(tally)
        self.total[biz_type].add(tally)


def totals(counters: Iterable[Tally]) -> Tally:
    """The sum of several."""
    summed = Tally()
    for tally in counters:
        summed.add(tally)
    return summed


def _copy(tally: Tally) -> Tally:
    copied = Tally()
    copied.add(tally)
    return copied
