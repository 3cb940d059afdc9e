"""Charts as SVG, drawn from numbers alone: bars over time, stacked lines, a sparkline, a share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from streams.figures import histogram
from streams.operate.series import Line, Series

WIDTH, HEIGHT = 600, 120
LEAST_SECONDS = 60.0  # processes send their counts every few seconds
SPANS_SAID = {"10m": "ten minutes", "1h": "an hour", "24h": "a day", "7d": "a week"}


@dataclass(frozen=True, slots=True)
class Layer:
    """One colour of a chart: what it is called, which of the six colours, and its values.

    Values come oldest first; None is no figure.
    """

    name: str
    colour: int
    values: Sequence[float | None]


def lines(figures: Series, counted: str) -> list[Line]:
    """The biz_types to which it happened at all, the busiest first."""
    busy = [line for line in figures.lines if sum(getattr(line, counted))]
    return sorted(busy, key=lambda line: -sum(getattr(line, counted)))


def rates(figures: Series, counted: str) -> Markup:
    """Counts a second of the six busiest biz_types over a span.

    Of buckets that are too many to be drawn the highest are, so that no burst is lost. The one that
    is not over counts by what of it is, as soon as that is a minute.
    """
    shown = lines(figures, counted)[:6]
    values = _highest([_rates(figures, getattr(line, counted)) for line in shown])
    layers = [
        Layer(line.biz_type, number, each)
        for number, (line, each) in enumerate(zip(shown, values, strict=True), 1)
    ]
    return stacked(layers, f"{counted} a second", "/s", SPANS_SAID[figures.span])


def latency(figures: Series) -> Markup:
    """p50 and p99 over a span, as lines with gaps where there are too few samples.

    What took longer than the last bound is drawn as long as that.
    """
    percentiles = {
        1: [_bounded(each.p50) for each in figures.latency],
        2: [_bounded(each.p99) for each in figures.latency],
    }
    top = nice(
        max(
            (value for values in percentiles.values() for value in values if value is not None),
            default=0,
        )
    )
    count = max(1, figures.buckets)
    drawn = Markup("").join(
        Markup('<polyline class="l{}" points="{}"/>').format(colour, points)
        for colour, values in percentiles.items()
        for points in _stretches(values, top, count)
    )
    title = (
        f"Seconds from enqueued to persisted, {SPANS_SAID[figures.span]}:"
        f" the axis ends at {top:g} s"
    )
    return _svg("chart", title, _grid(top, "s") + drawn)


def stacked(layers: Sequence[Layer], title: str, unit: str, span: str) -> Markup:
    """Bars of several layers on top of each other; `span` says in words which time they cover."""
    count = max((len(each.values) for each in layers), default=0)
    totals = [
        sum(each.values[at] or 0.0 for each in layers if at < len(each.values))
        for at in range(count)
    ]
    top = nice(max(totals, default=0.0))
    step = WIDTH / max(1, count)
    feet, wide = [0.0] * count, _n(max(0.8, step - 1))
    drawn = Markup("")
    for layer in layers:
        path = []
        for at, value in enumerate(layer.values):
            if value:
                tall = value / top * HEIGHT
                feet[at] += tall
                path.append(f"M{at * step:.4g} {HEIGHT - feet[at]:.4g}h{wide}v{tall:.4g}h-{wide}")
        drawn += Markup('<path class="c{}" d="{}"/>').format(layer.colour, "".join(path))
    label = (
        f"{title}, {span}: at most {top_of(totals)} {unit}"
        if count
        else f"{title}, {span}: no figures"
    )
    return _svg("chart", label, _grid(top, unit) + drawn)


def sparkline(values: Sequence[float], title: str) -> Markup:
    """A small row of bars for a table."""
    top = max([*values, 1])
    # One line with gaps: a list of causes has a thousand bars.
    bars = "".join(
        f"M{at * 4 + 1.5} 16V{_n(16 - max(1.0, value / top * 16))}"
        for at, value in enumerate(values)
        if value
    )
    return Markup(
        '<svg class="spark" viewBox="0 0 {} 16" width="{}" height="16" role="img"'
        ' aria-label="{}"><path d="{}"/></svg>'
    ).format(len(values) * 4, len(values) * 4, title, bars)


def share(part: float, whole: float, title: str) -> Markup:
    """How much of a whole, as one bar."""
    ratio = min(1.0, max(0.0, part / whole)) if whole > 0 else 0.0
    return Markup(
        '<svg class="share" viewBox="0 0 100 6" preserveAspectRatio="none" role="img"'
        ' aria-label="{}">'
        '<rect class="whole" width="100" height="6"/><rect class="part" width="{}"'
        ' height="6"/></svg>'
    ).format(title, _n(100 * ratio))


def nice(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten, for the top of an axis."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))  # an error for what has no end
    return next((step * power for step in (1, 2, 5) if step * power >= value), 10 * power)


def top_of(values: Sequence[float]) -> str:
    """The largest of the values, as a person reads it."""
    largest = max(values, default=0.0)
    return f"{largest:,.0f}" if largest >= 10 or largest == int(largest) else f"{largest:,.1f}"


def _grid(top: float, unit: str) -> Markup:
    lines = Markup("").join(
        Markup('<line class="grid" x1="0" x2="{}" y1="{}" y2="{}"/>').format(WIDTH, at, at)
        for at in (0.5, HEIGHT / 2, HEIGHT - 0.5)
    )
    label = Markup('<text x="4" y="12">{} {}</text>').format(f"{top:,.4g}", unit)
    return lines + label


def _svg(kind: str, title: str, inner: Markup) -> Markup:
    return Markup(
        '<svg class="{}" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img"'
        ' aria-label="{}">{}</svg>'
    ).format(kind, WIDTH, HEIGHT, title, inner)


def _n(value: float) -> str:
    # No coordinate has more than three digits before its point.
    return f"{value:.4g}"


def _stretches(values: Sequence[float | None], top: float, count: int) -> list[str]:
    """The points of each unbroken stretch; a single one is a short line."""
    stretches: list[list[str]] = [[]]
    for at, value in enumerate(values):
        if value is None:
            stretches.append([])
            continue
        height = _n(HEIGHT - min(1.0, value / top) * HEIGHT)
        stretches[-1] += [
            f"{_n(at * WIDTH / count)},{height}",
            f"{_n((at + 1) * WIDTH / count)},{height}",
        ]
    return [" ".join(points) for points in stretches if points]


def _bounded(seconds: float | None) -> float | None:
    return None if seconds is None else min(seconds, histogram.BOUNDS[-2])


def _rates(figures: Series, counts: Sequence[int]) -> list[float]:
    rates = [count / figures.width for count in counts]
    if figures.elapsed < figures.width:
        enough = figures.elapsed >= LEAST_SECONDS
        rates[-1] = counts[-1] / figures.elapsed if enough else 0.0
    return rates


def _highest(layers: Sequence[Sequence[float]], most: int = 180) -> list[list[float]]:
    """Of neighbours the one that is highest in all layers together, no more than so many.

    So a page stays small, and what is drawn on top of each other was so at one time.
    """
    totals = [sum(column) for column in zip(*layers, strict=True)]
    size = -(-len(totals) // most)
    peaks = [
        max(range(start, min(start + size, len(totals))), key=totals.__getitem__)
        for start in range(0, len(totals), size or 1)
    ]
    return [[values[at] for at in peaks] for values in layers]
