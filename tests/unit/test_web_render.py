"""What pages are made of.

Words for numbers, text made harmless, charts, and files that stay small.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from markupsafe import Markup

from streams.figures import histogram
from streams.operate.look import latency_of
from streams.operate.meaning import MEANINGS, meaning
from streams.operate.series import Line, Series
from streams.web import charts, render

TEMPLATES = sorted((render.FOLDER / "templates").glob("*.html"))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (1234567, "1,234,567"),
        (44.04, "44"),
        (9.96, "10.0"),
        (2.34, "2.3"),
        (0.5, "0.50"),
        (None, "unknown"),
    ],
)
def test_numbers_as_a_person_reads_them(value: float | None, shown: str) -> None:
    assert render.number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0042, "4 ms"),
        (1.25, "1.2 s"),
        (59.4, "59 s"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (90_061, "1 d 1 h"),
        (None, "unknown"),
    ],
)
def test_durations_as_a_person_says_them(value: float | None, shown: str) -> None:
    assert render.seconds(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "unknown"), (0.008, "at most 8 ms"), (math.inf, "more than 1 h 50 min")],
)
def test_a_percentile_beyond_the_last_bound_is_said(value: float | None, shown: str) -> None:
    assert render.bound(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2**40, "1.1 TB")]
)
def test_sizes_in_the_unit_that_fits(value: int, shown: str) -> None:
    assert render.bytes_(value) == shown


def test_text_of_others_is_harmless_wherever_it_is_put() -> None:
    evil = "<script>\u202e\x1b[2J`rm`"
    for made in (
        render.short(evil),
        render.short(evil * 99),
        render.prose(evil),
        render.ticked(evil),
    ):
        assert isinstance(made, Markup)
        assert "<script>" not in made and "\u202e" not in made and "\x1b" not in made
    address = render.link("conversation", key=evil, none=None, empty="")
    assert address.startswith("conversation?key=%3Cscript%3E%E2%80%AE%1B")
    assert "none" not in address


def test_a_chart_is_drawn_from_numbers_alone_and_says_what_it_shows() -> None:
    counts = tuple(range(60))
    nothing = (0,) * 60
    line = Line(
        biz_type="<b>",
        enqueued=nothing,
        relayed=nothing,
        consumed=counts,
        retried=nothing,
        parked=nothing,
        dead=nothing,
        skipped=nothing,
    )
    figures = Series(
        span="10m", width=10, start=datetime.now(UTC), buckets=60, elapsed=10, lines=(line,)
    )
    drawn = charts.rates(figures, "consumed")
    assert drawn.count("<path") == 1 and drawn.count("M") == 59
    assert "<b>" not in drawn
    assert 'aria-label="consumed a second, ten minutes: at most 5.9 /s"' in drawn
    assert charts.lines(figures, "dead") == []
    assert [charts.nice(value) for value in (0, 0.3, 1, 4, 99, 101)] == [1, 0.5, 1, 5, 100, 200]


def series_of(*consumed: Sequence[int], span: str, width: int, elapsed: float) -> Series:
    """A chart's figures: what was consumed in each bucket, of one biz_type after another."""
    nothing = (0,) * len(consumed[0])
    counts = dict.fromkeys(("enqueued", "relayed", "retried", "parked", "dead", "skipped"), nothing)
    return Series(
        span=span,
        width=width,
        start=datetime.now(UTC),
        buckets=len(nothing),
        elapsed=elapsed,
        lines=tuple(
            Line(biz_type=f"kind-{number}", consumed=tuple(values), **counts)
            for number, values in enumerate(consumed)
        ),
    )


def test_a_burst_of_a_minute_is_as_high_in_a_day_as_it_was() -> None:
    busy, other = [600] * 1440, [0] * 1440
    busy[700], other[703] = 48_000, 1200
    drawn = charts.rates(series_of(busy, other, span="24h", width=60, elapsed=30.0), "consumed")
    assert 'aria-label="consumed a second, a day: at most 800 /s"' in drawn
    assert drawn.count("M") <= 2 * 180
    # What is stacked was so at one time.
    steady = charts.rates(
        series_of([60] * 1440, [0, 60] * 720, span="24h", width=60, elapsed=30.0), "consumed"
    )
    assert "at most 2 /s" in steady


def test_a_bucket_that_is_not_over_is_no_fall() -> None:
    hours = [36_000] * 167
    for elapsed, last, bars in ((900.0, 9000, 168), (5.0, 40, 167), (3599.0, 72_000, 168)):
        figures = series_of([*hours, last], span="7d", width=3600, elapsed=elapsed)
        drawn = charts.rates(figures, "consumed")
        assert drawn.count("M") == bars
        tall = set(re.findall(r"v([\d.]+)h-", drawn))
        assert len(tall) == (2 if last == 72_000 else 1), elapsed


def test_latencies_beyond_the_last_bound_are_drawn_at_it() -> None:
    slow = latency_of([0] * (histogram.SIZE - 1) + [1000])
    assert slow.p99 == math.inf
    figures = Series(
        span="10m", width=10, start=datetime.now(UTC), buckets=1, elapsed=10, latency=(slow,)
    )
    spark = charts.sparkline((0, 1, 2), "deaths")
    assert 'd="M5.5 16V8M9.5 16V0"' in spark and 'aria-label="deaths"' in spark
    drawn = charts.latency(figures)
    assert "the axis ends at 10000 s" in drawn
    assert drawn.count("0,40.25 600,40.25") == 2


def test_codes_have_words_by_themselves_or_by_their_class() -> None:
    names = {
        code: meaning(code) for code in ("23503", "23P01", "OSError", "retry", "made-up", None)
    }
    assert names["23503"] == MEANINGS["23503"]
    assert names["23P01"] == MEANINGS["23"]
    assert names["retry"] == MEANINGS["retry"]
    raised = names["OSError"]
    assert raised is not None and raised.says == "its handler raised OSError"
    assert names["made-up"] is None and names[None] is None


def test_the_keys_that_help_names_are_those_that_do_something() -> None:
    shell = (render.FOLDER / "templates" / "shell.html").read_text(encoding="utf-8")
    script = (render.FOLDER / "static" / "script.js").read_text(encoding="utf-8")
    named = {key for keys in re.findall("<kbd>(.*?)</kbd>", shell) for key in keys.split()}
    goes = set(re.findall(r"'(\w)'\)", shell)) | {"g"}
    done = re.findall(r'^    "?([^\s":]+)"?: \(\) =>', script, re.MULTILINE)
    assert named == {*done, *goes} - {"?"}  # which shows the help
    rows = [row for file in TEMPLATES for row in file.read_text().split("<tr data-row>")[1:]]
    assert ("x" in named) is any('type="checkbox"' in row.split("</tr>")[0] for row in rows)


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    for file in TEMPLATES:
        text = file.read_text(encoding="utf-8")
        assert not re.search(
            r"\sstyle=|\son[a-z]+=|<style|javascript:|https?://|\|\s*safe", text
        ), file.name
        assert not re.search(r"<script(?! src=)", text), file.name


def test_files_stay_small() -> None:
    sizes = {
        name: (render.FOLDER / "static" / name).stat().st_size
        for name in ("style.css", "script.js")
    }
    assert sizes["style.css"] <= 15_000
    assert sizes["script.js"] <= 8_000
