"""Charts as SVG, drawn from numbers alone: bars over time, stacked lines, a sparkline, a share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 600, 120


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart: what it is called, which of the six colours, and its values, oldest first (None: no figure)."""

    name: str
    colour: int
    values: Sequence[float | None]


def stacked(series: Sequence[Series], title: str, unit: str, span: str) -> Markup:
    """Bars of several series on top of each other; `span` says in words which time they cover."""
    count = max((len(each.values) for each in series), default=0)
    totals = [sum(each.values[at] or 0.0 for each in series if at < len(each.values)) for at in range(count)]
    top = nice(max(totals, default=0.0))
    step = WIDTH / max(1, count)
    bars = []
    for at in range(count):
        foot = 0.0
        for each in series:
            value = (each.values[at] if at < len(each.values) else None) or 0.0
            if value <= 0:
                continue
            tall = value / top * HEIGHT
            foot += tall
            bars.append(
                Markup('<rect class="c{}" x="{}" y="{}" width="{}" height="{}"/>').format(
                    each.colour, _n(at * step), _n(HEIGHT - foot), _n(max(1.0, step - 1)), _n(tall)
                )
            )
    said = f"{title}, {span}: at most {top_of(totals)} {unit}" if count else f"{title}, {span}: no figures"
    return _svg("chart", said, _grid(top, unit) + Markup("").join(bars))


def sparkline(values: Sequence[float], title: str) -> Markup:
    """A small row of bars for a table."""
    top = max([*values, 1])
    bars = Markup("").join(
        Markup('<rect x="{}" y="{}" width="3" height="{}"/>').format(at * 4, _n(16 - tall), _n(tall))
        for at, value in enumerate(values)
        if (tall := max(1.0, value / top * 16) if value else 0.0)
    )
    return Markup(
        '<svg class="spark" viewBox="0 0 {} 16" width="{}" height="16" role="img" aria-label="{}">{}</svg>'
    ).format(len(values) * 4, len(values) * 4, title, bars)


def share(part: float, whole: float, title: str) -> Markup:
    """How much of a whole, as one bar."""
    ratio = min(1.0, max(0.0, part / whole)) if whole > 0 else 0.0
    return Markup(
        '<svg class="share" viewBox="0 0 100 6" preserveAspectRatio="none" role="img" aria-label="{}">'
        '<rect class="whole" width="100" height="6"/><rect class="part" width="{}" height="6"/></svg>'
    ).format(title, _n(100 * ratio))


def nice(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten, for the top of an axis."""
    if value <= 0:
        return 1.0
    power = 1.0
    while power * 10 <= value:
        power *= 10
    while power > value:
        power /= 10
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
        '<svg class="{}" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    ).format(kind, WIDTH, HEIGHT, title, inner)


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")
