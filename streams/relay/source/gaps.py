"""Unread ids between the floor and the newest one read: their rows may still commit.

This is policy only.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence


class Gaps:
    """Ranges of unread ids in ascending order, and the newest id read.

    Memory goes with the ranges, not with the ids.
    """

    def __init__(self, floor: int) -> None:
        self.newest = floor
        self._lows: list[int] = []
        self._highs: list[int] = []

    @property
    def ranges(self) -> tuple[list[int], list[int]]:
        """First and last id of each range."""
        return self._lows, self._highs

    def read(self, ids: Sequence[int]) -> None:
        """These ids, ascending, were read."""
        if ids and ids[0] == self.newest + 1 and ids[-1] == self.newest + len(ids):
            self.newest = ids[-1]
            return
        inside: list[int] = []
        for row_id in ids:
            if row_id <= self.newest:
                inside.append(row_id)
            else:
                if row_id > self.newest + 1:
                    self._lows.append(self.newest + 1)
                    self._highs.append(row_id - 1)
                self.newest = row_id
        if inside:
            self._cut(inside)

    def look(self, newest: int, lows: Iterable[int], highs: Iterable[int]) -> None:
        """Note that everything up to this id was looked at.

        Beyond the newest id so far, these ranges were not visible.
        """
        for low, high in zip(lows, highs, strict=True):
            if low <= newest:
                self._lows.append(low)
                self._highs.append(min(high, newest))
        self.newest = newest

    def settle(self, floor: int) -> None:
        """Every row at or below the floor was read or will never come."""
        index = bisect_right(self._highs, floor)
        del self._lows[:index], self._highs[:index]
        if self._lows and self._lows[0] <= floor:
            self._lows[0] = floor + 1
        self.newest = max(self.newest, floor)

    def _cut(self, ids: list[int]) -> None:
        lows: list[int] = []
        highs: list[int] = []
        taken = iter([*ids, None])
        row_id = next(taken)
        for low, high in zip(self._lows, self._highs, strict=True):
            start = low
            while row_id is not None and row_id <= high:
                if row_id >= start:
                    if row_id > start:
                        lows.append(start)
                        highs.append(row_id - 1)
                    start = row_id + 1
                row_id = next(taken)
            if start <= high:
                lows.append(start)
                highs.append(high)
        self._lows, self._highs = lows, highs
