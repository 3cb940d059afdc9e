"""Which runs of one partition are in flight, and up to which offset all before them are done.

A run is known by itself, never by an offset: after a rebalance the same offsets come again as
another run, and an ack that arrives late for the old one must not count for the new one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from streams.worker.driver.suspicion import Suspicion


@dataclass(eq=False, slots=True)
class Run:
    """Consecutive records of one partition.

    `current` until it is positioned again, `taken` once an agent has it.

    `suspicion` is that of its partition, None where nobody suspects anything, and `trial` the one
    under way; `waiting` while it waits for something that is no message's fault, which the log says
    to be `reason`, an SQLSTATE. `weight` counts records, or more than that where they are large.
    `progressed` is when something last ended of the attempt under way, None while there is none.
    `deleted` are the offsets before it, from the first up to the second, that Kafka deleted before
    anybody had read them.
    """

    topic: str
    partition: int
    records: Sequence[Any]
    acked: bool = False
    current: bool = True
    taken: bool = False
    suspicion: Suspicion | None = None
    trial: Any = None
    waiting: bool = False
    reason: str | None = None
    weight: int = 1
    progressed: float | None = None
    deleted: tuple[int, int] | None = None
    opened: float = field(default_factory=time.monotonic)
    parts: list[Run] = field(default_factory=list)

    @property
    def first(self) -> int:
        """Offset of the first record."""
        return int(self.records[0].offset)

    @property
    def end(self) -> int:
        """Offset to commit when everything up to and including this run is done."""
        return int(self.records[-1].offset) + 1

    @property
    def suspect(self) -> bool:
        """Whether it may hold the message that took the partition's last owner down."""
        return self.suspicion is not None and not self.suspicion.over

    def pieces(self, first: int = 0) -> list[Run]:
        """The same records as single runs, but for those before offset `first`: one run.

        These runs are given up together with this one.
        """
        before = [record for record in self.records if record.offset < first]
        some = [before] if before else []
        some += [[record] for record in self.records if record.offset >= first]
        self.parts = [
            Run(self.topic, self.partition, records, current=self.current) for records in some
        ]
        return self.parts

    def give_up(self) -> None:
        """The partition is not ours any more, or is positioned again."""
        self.current = False
        for run in self.parts:
            run.give_up()

    def __len__(self) -> int:
        return len(self.records)


class Ledger:
    """The runs of one partition since it was last positioned, in order."""

    def __init__(self) -> None:
        self._in_flight: deque[Run] = deque()
        self._done: int | None = None

    def open(self, run: Run) -> None:
        """A run was handed out."""
        self._in_flight.append(run)

    def committable(self) -> int | None:
        """End of the longest acked prefix.

        None while nothing is acked since the partition was positioned.
        """
        while self._in_flight and self._in_flight[0].acked:
            self._done = self._in_flight.popleft().end
        return self._done

    def pass_over(self, offset: int) -> None:
        """Nothing is in flight, and what there is before this offset are no records."""
        self._done = offset

    def reset(self) -> None:
        """Forget what was in flight: it will be delivered again, its acks count no more.

        The partition is positioned again.
        """
        for run in self._in_flight:
            run.give_up()
        self.detach()

    def detach(self) -> None:
        """Keep what was in flight as finished, without its offsets.

        It will not be delivered again, and its offsets mean nothing any more.
        """
        self._in_flight.clear()
        self._done = None

    @property
    def in_flight(self) -> Sequence[Run]:
        """Runs handed out and not yet part of the acked prefix."""
        return tuple(self._in_flight)


def split(
    topic: str, partition: int, records: Sequence[Any], most: int, most_bytes: int
) -> list[Run]:
    """The records as runs of at most `most` records and about `most_bytes` of values.

    One record is always let in.
    """
    sizes = [max(record.serialized_value_size, 0) for record in records]
    if len(records) <= most and (size := sum(sizes)) <= most_bytes:
        return [_weighed(Run(topic, partition, records), size * most // most_bytes)]
    runs: list[Run] = []
    start = size = 0
    for index, value_size in enumerate(sizes):
        if index > start and (index - start >= most or size + value_size > most_bytes):
            runs.append(
                _weighed(Run(topic, partition, records[start:index]), size * most // most_bytes)
            )
            start, size = index, 0
        size += value_size
    runs.append(_weighed(Run(topic, partition, records[start:]), size * most // most_bytes))
    return runs


def _weighed(run: Run, weight: int) -> Run:
    run.weight = max(len(run), weight)
    return run
