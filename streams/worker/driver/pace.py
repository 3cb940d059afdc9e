"""How long the next fetch may wait: for empty partitions, and for thin traffic to gather."""

from __future__ import annotations

IDLE_WAIT = 0.5  # seconds one fetch may wait for data: a rebalance waits for its end
HELD_WAIT = 0.003  # the same while some partitions are held back, so that they resume soon
HELD_MOST = 0.05  # and after several fetches in vain, each of which waits twice as long
BUSY_WAIT = 0.02  # seconds a broker may wait for data while anything is under way
# Seconds that thin traffic may gather before the next fetch: each costs the same, however little it
# brings
LINGER = 0.005
THIN = 100  # records of one fetch below which traffic is thin


class Pace:
    """What the last fetches brought; `busy` when the last one brought anything."""

    def __init__(self) -> None:
        self.busy = self._thin = False
        self._in_vain = 0  # fetches since the last one that brought anything

    @property
    def linger(self) -> float:
        """Seconds to pause before the next fetch."""
        return LINGER if self._thin else 0.0

    def broker_wait(self, *, idle: bool) -> float:
        """Seconds that the broker may keep a request for partitions that have nothing."""
        return IDLE_WAIT if idle else BUSY_WAIT

    def fetch_wait(self, *, held_back: bool) -> float:
        """Seconds that the next fetch may wait for data."""
        return min(HELD_MOST, HELD_WAIT * 2 ** min(self._in_vain, 8)) if held_back else IDLE_WAIT

    def fetched(self, records: int) -> None:
        """A fetch brought so many records."""
        self.busy = records > 0
        self._in_vain = 0 if records else self._in_vain + 1
        self._thin = 0 < records < THIN
