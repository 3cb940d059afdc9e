"""Sees a worker that looks alive and does nothing: a run nobody works, or persisted runs whose offset is never committed.

Faust has several known ways to stop silently; a restart cures each, because what is not committed is delivered again.
"""

from __future__ import annotations

import time
from typing import Any

LIMIT = 30.0  # seconds a partition may stand still in a way that no outage explains


class Watch:
    """Remembers since when each partition's commits are behind."""

    def __init__(self) -> None:
        self._behind: dict[Any, tuple[int, float]] = {}

    def stall(self, consumer: Any, now: float | None = None) -> dict[str, Any] | None:
        """What stands still, as data for the log; None while all is well."""
        now = time.monotonic() if now is None else now
        for tp in [tp for tp in consumer.assignment() if tp.topic in consumer.run_topics]:
            ledger = consumer.ledgers[tp]
            where = {"topic": tp.topic, "partition": tp.partition}
            for run in ledger.in_flight:
                if not run.taken and now - run.opened > LIMIT:
                    return {**where, "offset": run.first, "reason": "a run was fetched and never reached its agent"}
            if since := self._behind_since(tp, ledger.committable(), consumer.confirmed(tp), now):
                return {**where, "reason": f"persisted, but not committed for {now - since:.0f} s"}
        return None

    def _behind_since(self, tp: Any, persisted: int | None, committed: int | None, now: float) -> float | None:
        """Since when the same committed offset is behind, if for longer than LIMIT."""
        if persisted is None or (committed is not None and committed >= persisted):
            self._behind.pop(tp, None)
            return None
        mark, since = self._behind.setdefault(tp, (committed or -1, now))
        if mark != (committed or -1):
            self._behind[tp] = (committed or -1, now)
            return None
        return since if now - since > LIMIT else None
