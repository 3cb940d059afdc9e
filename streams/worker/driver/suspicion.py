"""When a partition may hold the message that took its last owner down, and until when.

Pure policy, for one partition from its assignment on. Whoever died unnoted had at most one group
of runs of it in a handler, and everything before that group had a fate. So the guilty message is
among the first `most` records (or twice the bytes of a run) behind the first message without a
fate, or before the end that the log had at the assignment: until that much went through handlers
and was committed, every run is noted before a handler is called.

    life 1   not suspect    the message kills its process; nobody noted it
    life 2   suspect        its run is noted, and kills: one death
    life 3   suspect        noted again: two deaths
    life 4   isolated       one message at a time, each noted by its root id: one strike, then two,
                            then three
    life 7   isolated       three strikes: the message is dead without being tried

The end of a noted run is kept too: the message is before it, however differently the next owner
cuts the log into runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

ISOLATE = 2  # noted deaths after which a partition's messages are tried one at a time
STRIKES = (
    3  # deaths of a process while it tried the same message alone, after which that message is dead
)


class Owner(Protocol):
    """Who has to know what becomes of a process's partitions, each a topic and a number."""

    def assigned(self, places: Iterable[tuple[str, int]]) -> None:
        """These are ours from now on."""

    def of(self, topic: str, partition: int) -> Suspicion | None:
        """What is suspected of this one's next run."""

    async def give_up(self, places: Iterable[tuple[str, int]]) -> None:
        """These are ours no more."""


class Record(Protocol):
    """What a record of a run says of itself."""

    @property
    def offset(self) -> int:
        """Where it stands."""

    @property
    def serialized_value_size(self) -> int:
        """Bytes of its value, -1 when it has none."""


class Stretch(Protocol):
    """Consecutive records of one partition."""

    records: Sequence[Record]

    @property
    def end(self) -> int:
        """Offset behind the last one."""


@dataclass(frozen=True, slots=True)
class Strikes:
    """What is stored of a partition: its noted deaths, and the end of the longest run in them.

    `orderly` when its last owner gave it up alive, and did not suspect it.
    """

    crashes: int = 0
    through: int | None = None
    orderly: bool = False

    def plus(self, end: int) -> Strikes:
        """With one more, for a run that ends there."""
        return Strikes(self.crashes + 1, max(end, self.through or 0))


class Suspicion:
    """One partition since it was assigned: suspect until `over`.

    `strikes` are those of earlier owners, known once it is `taken`; `most` and `most_bytes` are
    what a group of runs may hold, None where only the log's end bounds the search.
    """

    def __init__(self, topic: str, partition: int, most: int | None, most_bytes: int) -> None:
        self.topic, self.partition = topic, partition
        self._most, self._most_bytes = most, most_bytes
        self._until: int | None = None
        self._records = self._bytes = 0
        self.owner = ""
        self.strikes = Strikes()
        self.taken = self.over = self.given_up = False
        self.busy = 0

    @property
    def place(self) -> tuple[str, int]:
        """Topic and partition."""
        return self.topic, self.partition

    def delivered(self, end_of_log: int) -> None:
        """Note that a first run was fetched while the log ended there.

        What was written later killed nobody yet.
        """
        if self._until is None:
            self._until = end_of_log

    def take(self, owner: str, strikes: Strikes) -> None:
        """It is ours under this name, and earlier owners left these strikes."""
        self.owner, self.taken, self.over = owner, True, strikes.orderly
        through = strikes.through
        if through is not None and self._until is not None:
            through = min(through, self._until)  # of a topic that was made anew nothing was noted
        self.strikes = Strikes(strikes.crashes, through)

    def after(self, run: Stretch) -> Strikes:
        """The strikes that are left when everything of this run has its fate.

        None are, once all that was noted is through.
        """
        through = self.strikes.through
        return Strikes() if through is not None and run.end >= through else self.strikes

    def done(self, run: Stretch, first: int | None) -> None:
        """Note that the run is committed.

        `first` is the offset of its first record that a handler got, None when none did.
        """
        self.strikes = self.after(run)
        if first is None:
            return  # who calls nobody clears nobody
        behind = [record for record in run.records if record.offset >= first]
        self._records += len(behind)
        self._bytes += sum(max(0, record.serialized_value_size) for record in behind)
        enough = self._most is not None and (
            self._records >= self._most or self._bytes >= 2 * self._most_bytes
        )
        if self.strikes.through is None and (
            enough or self._until is None or run.end >= self._until
        ):
            self.over = True
