"""How far each partition is: what comes next, is in flight, may be committed and is confirmed.

Nothing here knows Faust. Every positioning starts an epoch: what was fetched across one is never
delivered, acks of runs from before it count no more, and what was seen in another epoch proves
nothing.

    position(5)   fetched 5 to 9     NEXT       handed out as a run, `expected` is 10
                  fetched 12 to 14   HOLE       two records are missing: read again from 10
                  fetched 12 to 14   NEXT       the hole is in the log: seen twice in one epoch
                  fetched 3 to 4     HOLE       read again from 15
                  fetched 3 to 4     SHORTER    the log lost its end: other records are there now
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, ValuesView
from enum import Enum, auto

from streams.worker.driver.runs import Ledger, Run


class Fetched(Enum):
    """What records mean that were fetched of a partition."""

    NEXT = auto()  # to be delivered
    HOLE = auto()  # not what was expected: to be read again, once
    SHORTER = auto()  # to be delivered; the log ends before what was read of it


class PartitionProgress:
    """One partition since it was last positioned.

    expected     the offset that comes next; None while that is not known
    confirmed    the offset whose commit the broker confirmed
    deleted      offsets that Kafka deleted unread, told with the run that comes after them; until
                 then nothing behind them may be committed.  They begin at -1 where nobody knows up
                 to where the partition was read
    ledger       the runs in flight, and what may be committed
    """

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.expected: int | None = None
        self.confirmed: int | None = None
        self.deleted: tuple[int, int] | None = None
        self._hole: tuple[int, int, int] | None = (
            None  # from where to where, and in which epoch it was seen
        )
        self._reading_again: tuple[int | None, int] | None = (
            None  # from which offset, and in which epoch
        )

    def forget(self) -> None:
        """Forget what was in flight: it will be delivered again.

        The partition is positioned again, or not ours any more.
        """
        self.ledger.reset()
        self.expected = self.confirmed = self.deleted = None

    def judge(self, first: int, epoch: int) -> Fetched:
        """What records from this offset on mean."""
        if self.expected is None or first == self.expected:
            return Fetched.NEXT
        # Compaction, retention and transaction markers leave holes that stay; a race with a seek
        # does not. What was seen in another epoch proves nothing: the same fetch may have been
        # dropped again.
        hole = (self.expected, first, epoch)
        if self._hole != hole:
            self._hole = hole
            return Fetched.HOLE
        if first > self.expected:
            return Fetched.NEXT
        # What is in flight is still persisted, but its offsets are of the log that is gone.
        self.ledger.detach()
        self.confirmed = None
        return Fetched.SHORTER

    def deliver(self, run: Run) -> None:
        """Note that this run is handed out."""
        run.deleted, self.deleted = self.deleted, None
        self.ledger.open(run)
        self.expected = run.end

    def read_again(self, epoch: int) -> None:
        """Note that nothing came of what the log holds: it is read again from what is expected."""
        self._reading_again = (self.expected, epoch)

    def came_again(self, first: int, epoch: int) -> bool:
        """Whether these records had been lost on their way, and came by being read again."""
        again, self._reading_again = self._reading_again, None
        return again == (self.expected, epoch) and first == self.expected

    def came_to_nothing(self, position: int, epoch: int) -> bool:
        """Whether nothing came again up to this position: then there are no records."""
        if self.ledger.in_flight:
            self._reading_again = None
            return False
        return (
            self.expected is not None
            and position > self.expected
            and self._reading_again == (self.expected, epoch)
        )

    def pass_over(self, position: int) -> bool:
        """Go on behind what came to nothing; whether that may be committed: there is no lag then.

        What Kafka deleted is told first. Who comes after us sees it again until it is.
        """
        self._reading_again = None
        self.expected = position
        if self.deleted is not None:
            return False
        self.ledger.pass_over(position)
        return True

    def note_deleted(self, deleted: tuple[int, int] | None) -> None:
        """Note these offsets, beside what was not told yet."""
        if deleted is not None:
            first, end = self.deleted or deleted
            self.deleted = min(first, deleted[0]), max(end, deleted[1])


class Progress:
    """All partitions that a consumer has had; `epoch` grows with every positioning."""

    def __init__(self) -> None:
        self.epoch = 0
        self._partitions: defaultdict[Hashable, PartitionProgress] = defaultdict(PartitionProgress)

    def __getitem__(self, partition: Hashable) -> PartitionProgress:
        return self._partitions[partition]

    def values(self) -> ValuesView[PartitionProgress]:
        """Each partition's."""
        return self._partitions.values()

    def forget(self, partitions: Iterable[Hashable]) -> None:
        """Begin an epoch, in which these are positioned again."""
        self.epoch += 1
        for partition in partitions:
            self._partitions[partition].forget()
