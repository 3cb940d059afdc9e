"""From what many processes counted to one row for all: ten seconds, a minute and an hour wide.

Two hundred processes with five biz_types would be a hundred megabytes an hour: rows that nobody
writes any more become one. All three widths are written at once, so that a chart reads rows of one
width only, and the old ones are just deleted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from streams.events import BIZ_TYPE_MOST
from streams.figures import histogram
from streams.figures.counters import UNKNOWN

WIDTHS = (10, 60, 3600)
COUNTS = ("enqueued", "relayed", "consumed", "retried", "parked", "dead", "skipped")


def merged(taken: Iterable[Sequence[Any]]) -> list[dict[str, Any]]:
    """Rows of `figures_take` added up, as `figures_add` takes them.

    Histograms of older bounds than the newest of their bucket are left out: their counts are not.
    """
    summed: dict[tuple[int, datetime, str, str], dict[str, Any]] = {}
    for bucket, projection, biz_type, *counts, latency, bounds in taken:
        for width in WIDTHS:
            start = _start(bucket, width)
            row = summed.setdefault(
                (width, start, projection, biz_type), _empty(width, start, projection, biz_type)
            )
            for name, count in zip(COUNTS, counts, strict=True):
                row[name] += count
            if bounds > row["bounds"]:
                row["bounds"], row["latency"] = bounds, [0] * histogram.SIZE
            if bounds == row["bounds"]:
                row["latency"] = histogram.total((row["latency"], latency))
    return [row | {"bucket": row["bucket"].isoformat()} for row in summed.values()]


def now_rows(
    counts: Iterable[tuple[str, int, int]], projection: str = "main"
) -> list[dict[str, Any]]:
    """(biz_type, enqueued, relayed) as `figures_add` adds them to the buckets that are open now.

    What is longer than a biz_type may be was written by hand: it is counted as one that is unknown.
    """
    summed: dict[str, list[int]] = {}
    for biz_type, enqueued, relayed in counts:
        named = biz_type if len(biz_type) <= BIZ_TYPE_MOST else UNKNOWN
        both = summed.setdefault(named, [0, 0])
        both[0] += enqueued
        both[1] += relayed
    return [
        _empty(width, None, projection, biz_type) | {"enqueued": enqueued, "relayed": relayed}
        for biz_type, (enqueued, relayed) in summed.items()
        for width in WIDTHS
    ]


def _empty(width: int, bucket: datetime | None, projection: str, biz_type: str) -> dict[str, Any]:
    return {
        "width": width,
        "bucket": bucket,
        "projection": projection,
        "biz_type": biz_type,
        **dict.fromkeys(COUNTS, 0),
        "latency": [0] * histogram.SIZE,
        "bounds": histogram.VERSION,
    }


def _start(bucket: datetime, width: int) -> datetime:
    return datetime.fromtimestamp(bucket.timestamp() // width * width, UTC)
