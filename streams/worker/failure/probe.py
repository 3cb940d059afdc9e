"""How long it takes to learn that nothing of a topic is open, and what to do when that is long.

One probe of an index tells it, as a rule. While an old snapshot is open nothing that was settled
since can be removed, and the probe wades through all of it: 345,000 messages that failed and
succeeded made it 150 to 280 ms for every run. By conversation it is one probe each, which meets
only what that conversation has left behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

SLOW_SECONDS = 0.005
SLOW_PROBES = 2  # one alone may have waited for a core
AVOIDED_SECONDS = 60.0


@dataclass(slots=True)
class Probe:
    """The probe of one topic: `slow` for a minute after two in a row took more than 5 ms."""

    clock: Callable[[], float] = time.monotonic
    _slow_probes: int = 0
    _avoided_until: float = 0.0

    def took(self, seconds: float) -> None:
        """A probe took so long."""
        self._slow_probes = self._slow_probes + 1 if seconds > SLOW_SECONDS else 0
        if self._slow_probes >= SLOW_PROBES:
            self._slow_probes = 0
            self._avoided_until = self.clock() + AVOIDED_SECONDS

    @property
    def slow(self) -> bool:
        """Whether it had better be asked by conversation."""
        return self.clock() < self._avoided_until
