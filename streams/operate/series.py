"""Figures over time for charts: ten minutes, an hour, a day, a week."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

from sqlalchemy import Connection

from streams.database import query
from streams.figures import histogram
from streams.operate.look import latency_of, moment
from streams.operate.snapshot import Latency

Span = Literal["10m", "1h", "24h", "7d"]

# Of each span: the width of its buckets in seconds, and how many there are.
SPANS: Mapping[str, tuple[int, int]] = {
    "10m": (10, 60),
    "1h": (10, 360),
    "24h": (60, 1440),
    "7d": (3600, 168),
}
WIDTHS = (60, 3600)
MOST = 30_000
"""Buckets of all biz_types together that are read for one chart: of more, wider ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One biz_type's counts, a number for each bucket."""

    biz_type: str
    enqueued: tuple[int, ...]
    relayed: tuple[int, ...]
    consumed: tuple[int, ...]
    retried: tuple[int, ...]
    parked: tuple[int, ...]
    dead: tuple[int, ...]
    skipped: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GaugeLine:
    """One gauge's values, None in buckets that nobody wrote."""

    name: str
    label: str
    values: tuple[float | None, ...]
    highest: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Buckets of `width` seconds, the first beginning at `start`.

    Of the last one `elapsed` seconds are over. Counts are about: a process that was killed took its
    last six seconds along.
    """

    span: str
    width: int
    start: datetime
    buckets: int
    elapsed: float = field(compare=False)
    lines: tuple[Line, ...] = ()
    latency: tuple[Latency, ...] = ()
    gauges: tuple[GaugeLine, ...] = field(default_factory=tuple)


def series(
    connection: Connection,
    span: Span = "10m",
    *,
    projection: str = "main",
    biz_type: str | None = None,
) -> Series:
    """Counts, latencies and gauges over a span that ends now, or with what a replica shows.

    Counts are by biz_type, latencies are of one biz_type if it is named. Where there are hundreds
    of biz_types buckets are wider.
    """
    width, buckets = _fitting(span, connection.exec_driver_sql(query("stats_kinds")).scalar_one())
    now = moment(connection).at.timestamp()
    last = math.floor(now / width) * width
    start = datetime.fromtimestamp(last, UTC) - timedelta(seconds=width * (buckets - 1))
    parameters = {"width": width, "since": start, "projection": projection}

    # Thousands of rows are of some hundred buckets.
    columns = {start + timedelta(seconds=width * column): column for column in range(buckets)}
    counts: dict[str, list[list[int]]] = defaultdict(lambda: [[0] * buckets for _ in range(7)])
    rows = connection.exec_driver_sql(query("stats_series"), parameters).all()
    for at, name, *numbers in rows:
        if (bucket := columns.get(at)) is not None:
            for column, number in zip(counts[name], numbers, strict=True):
                column[bucket] += number
    times: list[list[Sequence[int]]] = [[] for _ in range(buckets)]
    asked = parameters | {"bounds": histogram.VERSION, "biz_type": biz_type}
    for at, latency in connection.exec_driver_sql(query("latency_series"), asked).all():
        if (bucket := columns.get(at)) is not None:
            times[bucket].append(latency)
    gauges: dict[tuple[str, str], list[tuple[float | None, float | None]]] = defaultdict(
        lambda: [(None, None)] * buckets
    )
    for at, name, label, value, highest in connection.exec_driver_sql(
        query("gauge_series"), {"width": width, "since": start}
    ):
        if (bucket := columns.get(at)) is not None:
            gauges[name, label][bucket] = (value, highest)
    return Series(
        span=span,
        width=width,
        start=start,
        buckets=buckets,
        elapsed=now - last,
        lines=tuple(_line(name, columns) for name, columns in sorted(counts.items())),
        latency=tuple(latency_of(histogram.total(each)) for each in times),
        gauges=tuple(
            GaugeLine(
                name=name,
                label=label,
                values=tuple(value for value, _ in values),
                highest=tuple(highest for _, highest in values),
            )
            for (name, label), values in sorted(gauges.items())
        ),
    )


def _fitting(span: Span, kinds: int) -> tuple[int, int]:
    """The width of buckets, and how many there are, for figures of so many biz_types."""
    width, buckets = SPANS[span]
    for wider in WIDTHS:
        if kinds * buckets > MOST and wider > width and width * buckets % wider == 0:
            width, buckets = wider, width * buckets // wider
    return width, buckets


def _line(biz_type: str, columns: list[list[int]]) -> Line:
    enqueued, relayed, consumed, retried, parked, dead, skipped = map(tuple, columns)
    return Line(
        biz_type=biz_type,
        enqueued=enqueued,
        relayed=relayed,
        consumed=consumed,
        retried=retried,
        parked=parked,
        dead=dead,
        skipped=skipped,
    )
