"""What runs of this process wait for, and since when: shown by whoever shows the process."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from streams.worker.driver.runs import Run


@dataclass(slots=True)
class Waits:
    """Runs that met an outage.

    It holds in words what they wait for, its SQLSTATE, and since when (monotonic).
    """

    runs: dict[Run, tuple[str, str | None, float]] = field(default_factory=dict)

    def note(self, run: Run, words: str, code: str | None) -> None:
        """A run waits; the same one once more keeps its beginning."""
        self._forget()
        since = self.runs[run][2] if run in self.runs else time.monotonic()
        self.runs[run] = (words, code, since)

    @property
    def longest(self) -> tuple[str, str | None, float] | None:
        """The run that waits longest: in words, its SQLSTATE, for how many seconds."""
        self._forget()
        if not self.runs:
            return None
        run, (words, code, since) = min(self.runs.items(), key=lambda item: item[1][2])
        where = f"{words} (topic {run.topic}, partition {run.partition})"
        return where, code, time.monotonic() - since

    def _forget(self) -> None:
        """Those that went on, or are nobody's here any more."""
        self.runs = {run: about for run, about in self.runs.items() if run.waiting and run.current}
