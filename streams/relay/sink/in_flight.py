"""Which position is safe to confirm: the longest prefix of rows that are acknowledged.

This is policy only; a Flight's `acknowledged` is what librdkafka calls for each record.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streams.relay.sink.spans import Publication


class InFlight:
    """Rows on their way, in commit order."""

    def __init__(self) -> None:
        self.position: int | None = None
        self.acknowledged = 0
        self.rows = 0
        self.size = 0
        self.failure: Any | None = None
        self._queue: deque[Flight] = deque()

    def start(self, rows: int, size: int, position: int | None) -> Flight:
        """Note rows that are about to be produced.

        Without rows the position waits for those before it.
        """
        flight = Flight(self, rows, size, position)
        self._queue.append(flight)
        self.rows += rows
        self.size += size
        if not rows:
            self.settle(flight)
        return flight

    def settle(self, flight: Flight) -> None:
        """All records of this flight are acknowledged or dead."""
        self.rows -= flight.rows
        self.acknowledged += flight.rows
        self.size -= flight.size
        queue = self._queue
        while queue and not queue[0].left:
            position = queue.popleft().position
            if position is not None and (self.position is None or position > self.position):
                self.position = position


class Flight:
    """The rows that were read together; `trace` is told how it ends, where there is one."""

    __slots__ = ("_flights", "left", "position", "rows", "size", "trace")

    def __init__(self, flights: InFlight, rows: int, size: int, position: int | None) -> None:
        self._flights = flights
        self.left = self.rows = rows
        self.size = size
        self.position = position
        self.trace: Publication | None = None

    def acknowledged(self, error: Any, message: Any) -> None:
        """One record is acknowledged, or refused: then nothing from here on is ever confirmed."""
        if error is not None:
            self._flights.failure = self._flights.failure or error
            if self.trace is not None:
                self.trace.end(error)
            return
        self.left -= 1
        if not self.left:
            self._flights.settle(self)
            if self.trace is not None:
                self.trace.end(None)
