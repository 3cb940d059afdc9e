"""Sees a worker that looks alive and does nothing.

Faust has several known ways to stop silently; a restart cures each, because what is not committed
is delivered again.
"""

from __future__ import annotations

import math
import time
from typing import Any

LIMIT = 30.0  # seconds a partition may stand still in a way that no outage explains


class StallDetector:
    """Remembers since when each partition's commits are behind.

    `patience` is for how many seconds an attempt may be under way while nothing of it ends: no call
    of a handler, no try. `commit_interval`: seconds from one commit to the next.
    """

    def __init__(self, patience: float = math.inf, commit_interval: float = 0.0) -> None:
        self._patience, self._commits_within = patience, LIMIT + commit_interval
        self._behind: dict[Any, tuple[int, float]] = {}

    def stall(self, consumer: Any, now: float | None = None) -> dict[str, Any] | None:
        """What stands still, as data for the log.

        None while all is well, or while nobody could commit anything.
        """
        now = time.monotonic() if now is None else now
        if not consumer.in_touch():
            self._behind.clear()
        for tp in [tp for tp in consumer.assignment() if tp.topic in consumer.run_topics]:
            partition = consumer.progress[tp]
            ledger = partition.ledger
            where = {"topic": tp.topic, "partition": tp.partition}
            for run in ledger.in_flight:
                if not run.taken and now - run.opened > LIMIT:
                    return {
                        **where,
                        "offset": run.first,
                        "reason": "a run was fetched and never reached its agent",
                    }
                if run.progressed is not None and now - run.progressed > self._patience:
                    return {
                        **where,
                        "offset": run.first,
                        "reason": f"nothing of a run ends for {self._patience:.0f} s",
                    }
            if since := self._behind_since(tp, ledger.committable(), partition.confirmed, now):
                return {**where, "reason": f"persisted, but not committed for {now - since:.0f} s"}
        return None

    def _behind_since(
        self, tp: Any, persisted: int | None, committed: int | None, now: float
    ) -> float | None:
        """Since when the same committed offset is behind, if a commit should have come since."""
        if persisted is None or (committed is not None and committed >= persisted):
            self._behind.pop(tp, None)
            return None
        mark, since = self._behind.setdefault(tp, (committed or -1, now))
        if mark != (committed or -1):
            self._behind[tp] = (committed or -1, now)
            return None
        return since if now - since > self._commits_within else None
