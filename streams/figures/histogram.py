"""Latencies as counts in 32 buckets, each 1.6 times as wide as the one before, from 5 ms on.

The same bounds in PostgreSQL and in Prometheus: what is merged stays comparable. Another set of
bounds is another version.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import zip_longest

VERSION = 1
SIZE = 32
BOUNDS = (*(0.005 * 1.6**step for step in range(SIZE - 1)), math.inf)
"""Upper bounds in seconds: 0.005, 0.008, ... 6646, and everything above."""
LEAST_SAMPLES = 100
"""Fewer say nothing about their slowest hundredth."""

# Milliseconds, whole: what a record's time is counted in.
_MILLIS = tuple(math.floor(bound * 1000) for bound in BOUNDS[:-1])


def count_times(counts: list[int], created: Iterable[int], now: int) -> None:
    """Count messages by how long ago each was created; all in epoch milliseconds.

    A run's records are nearly in order, so that sorting them costs next to nothing, and a run falls
    into few buckets: that is a fiftieth of looking each message up.
    """
    times = sorted(created)
    left = len(times)
    for bucket, millis in enumerate(_MILLIS):
        if not left:
            return
        # Those created at that time or later are at most so old.
        start = bisect_left(times, now - millis, 0, left)
        counts[bucket] += left - start
        left = start
    counts[-1] += left


def total(histograms: Iterable[Sequence[int]]) -> list[int]:
    """The sum of several histograms; shorter ones count as far as they go."""
    # Bucket by bucket: a page adds a thousand of them, and a sixth of the time is enough for it.
    summed = [sum(counts) for counts in zip_longest(*histograms, fillvalue=0)][:SIZE]
    return summed + [0] * (SIZE - len(summed))


def quantile(counts: Sequence[int], share: float) -> float | None:
    """The bound that this share of the messages kept, in seconds.

    None with too few of them, inf in the last bucket.

    A median needs two samples; a 95th percentile twenty, a 99th a hundred.
    """
    samples = sum(counts)
    if samples < 1 or samples * (1 - share) < 1 - 1e-9:
        return None
    wanted = samples * share
    seen = 0
    for bound, count in zip(BOUNDS, counts, strict=False):
        seen += count
        if seen >= wanted:
            return bound
    return math.inf
