"""Sees records that reached nobody: they are read again, without a restart."""

from __future__ import annotations

from typing import Any

# Seconds after which a log that goes on behind what was delivered is read again from there
UNREAD = 10.0
MARKERS = 1.0  # the same where aiokafka was there: transaction markers, most likely


class Unread:
    """Remembers since when a partition's log goes on while nothing is delivered.

    The log goes on behind what was delivered of it.
    """

    def __init__(self) -> None:
        self._since: dict[Any, tuple[int, float]] = {}
        self._tried: dict[Any, tuple[int, int]] = {}

    def overdue(self, tp: Any, delivered: int, end: int, now: float, *, read: bool = False) -> bool:
        """Whether to read it again from `delivered` on.

        Once for each end: transaction markers end a log, too.

        `read` when it was read on behind what was delivered, and nothing came of it.
        """
        mark, since = self._since.setdefault(tp, (delivered, now))
        if mark != delivered or end <= delivered:
            self._since[tp] = (delivered, now)
            return False
        if now - since < (min(MARKERS, UNREAD) if read else UNREAD) or self._tried.get(tp) == (
            delivered,
            end,
        ):
            return False
        self._tried[tp] = (delivered, end)
        return True
