"""Counting, histograms and roll-up: never more than happened.

It is the same whatever is sent twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.figures import histogram, rollup
from streams.figures.counters import ANY, UNKNOWN, Counters, RunTally
from streams.figures.process import Vitals, beat_seconds
from streams.figures.rollup import now_rows
from streams.worker.database.database import Asked
from streams.worker.figures import PartitionLag, WorkerFigures

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def bucket(number: int) -> datetime:
    return NOON + timedelta(seconds=10 * number)


def consumed(count: int, biz_type: str = "chat", age_ms: int = 20) -> RunTally:
    tally = RunTally()
    tally.consumed(biz_type, [1_000_000 - age_ms] * count)
    return tally


def sent(counters: Counters) -> dict[str, int]:
    return {row["biz_type"]: row["consumed"] for row in counters.open()[1]}


def test_bounds_grow_by_the_same_factor_and_the_last_has_no_end() -> None:
    assert len(histogram.BOUNDS) == histogram.SIZE == 32
    assert histogram.BOUNDS[0] == 0.005
    assert histogram.BOUNDS[1] == pytest.approx(0.008)
    assert histogram.BOUNDS[-1] == math.inf


@given(st.lists(st.integers(0, 20_000_000), max_size=200))
def test_a_run_is_counted_as_each_message_would_be_alone(ages: list[int]) -> None:
    now = 1_700_000_000_000
    together = [0] * histogram.SIZE
    histogram.count_times(together, [now - age for age in ages], now)
    alone = [0] * histogram.SIZE
    for age in ages:
        alone[
            next(place for place, bound in enumerate(histogram.BOUNDS) if age / 1000 <= bound)
        ] += 1
    assert together == alone


def test_a_message_from_the_future_has_the_shortest_latency() -> None:
    counts = [0] * histogram.SIZE
    histogram.count_times(counts, [2000], 1000)
    assert counts[0] == sum(counts) == 1


def test_a_quantile_is_a_bound_and_needs_enough_samples() -> None:
    counts = [0] * histogram.SIZE
    assert histogram.quantile(counts, 0.5) is None
    counts[3], counts[31] = 99, 0
    assert histogram.quantile(counts, 0.5) == histogram.BOUNDS[3]
    assert histogram.quantile(counts, 0.99) is None
    counts[31] = 1
    assert histogram.quantile(counts, 0.99) == histogram.BOUNDS[3]
    counts[31] = 2
    assert histogram.quantile(counts, 0.99) == math.inf


def test_counts_sent_twice_are_the_same_and_a_new_bucket_begins_at_zero() -> None:
    counters = Counters()
    counters.count(consumed(3), 1000)
    assert counters.open() == (None, [])
    counters.answered(bucket(1))
    assert sent(counters) == {"chat": 3} == sent(counters)
    counters.answered(bucket(1))
    counters.count(consumed(4), 1000)
    assert sent(counters) == {"chat": 7}
    counters.count(consumed(5), 1000)  # while the flush is under way
    counters.answered(bucket(2))
    assert counters.open()[0] == bucket(2)
    assert sent(counters) == {"chat": 5}
    assert counters.total["chat"].consumed == 12


@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["answered", "lost", "refused", "next"])))
)
def test_the_database_never_has_more_than_happened(steps: list[tuple[int, str]]) -> None:
    counters, stored, now, happened = Counters(), dict[datetime, int](), 1, 0
    counters.answered(bucket(now))
    for count, end in steps:
        happened += count
        counters.count(consumed(count), 1000)
        at, rows = counters.open()
        assert at is not None
        arrives = end != "refused" and now - (at - NOON).total_seconds() / 10 <= 3
        if rows and arrives:
            stored[at] = rows[0]["consumed"]
        now += end != "answered"
        if end != "lost":
            counters.answered(bucket(now))
        assert sum(stored.values()) <= happened
        if end == "answered":
            assert sum(stored.values()) <= happened
    if all(end in ("answered", "next") for _, end in steps):
        assert sum(stored.values()) == happened


def test_messages_set_aside_are_counted_by_their_status_now() -> None:
    counters, tally = Counters(), RunTally()
    for status in ("retrying", "retrying", "parked", "dead"):
        tally.aside("chat", status)
    more = RunTally()
    more.aside("chat", "dead")
    more.consumed("other", [1])
    tally.add(more)
    counters.count(tally, 1000, skipped=2)
    chat = counters.total["chat"]
    assert (chat.retried, chat.parked, chat.dead, chat.consumed) == (2, 1, 2, 0)
    assert counters.total["other"].consumed == 1
    assert counters.total[ANY].skipped == 2


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("partitions", [0, 1])
async def test_a_sign_of_life_is_told_with_and_without_counts_and_partitions(
    counts: bool, partitions: int
) -> None:
    """A standby has no partition, and counts that were refused are left out for a minute."""
    asked: list[str] = []

    async def tell(statements: Sequence[Asked]) -> list[list[tuple[Any, ...]]]:
        asked.extend(statement.splitlines()[0] for statement, _ in statements)
        answers: dict[str, list[tuple[Any, ...]]] = {"beat": [(3,)], "flush": [(NOON, True, 0.0)]}
        kinds = ["beat", *["lag"] * partitions, *["flush"] * counts]
        return [answers.get(kind, []) for kind in kinds]

    database: Any = SimpleNamespace(tell=tell)
    figures = WorkerFigures(database, "group", ["note"])
    lags = [PartitionLag("t", number, None, 1, 2, None) for number in range(partitions)]
    vitals = Vitals(kind="worker", name="w", partitions={})
    assert await figures._tell(vitals, lags, counts=counts) == beat_seconds(3)
    assert len(asked) == 1 + partitions + counts


def test_a_record_of_the_year_55000_keeps_no_worker_from_telling_how_far_it_is() -> None:
    """Its producer gave microseconds, and the worker gave no sign of life any more."""
    database: Any = None
    figures = WorkerFigures(database, "group", ["note"])
    figures.worked("t", 0, 1_700_000_000_000_000)
    worked = PartitionLag("t", 0, None, 1, 2, figures.worked_at("t", 0)).row()["worked"]
    assert worked.year == 9999


def test_what_nobody_knows_is_counted_as_one() -> None:
    """Other systems invent names without end, and some that PostgreSQL cannot store."""
    counters, tally = Counters({"note"}), RunTally()
    for biz_type in ("note", "a\0b", "x" * 9000):
        tally.aside(biz_type, "dead")
    counters.count(tally, 0.0, skipped=2)
    assert {name: counted.dead for name, counted in counters.total.items()} == {
        "note": 1,
        UNKNOWN: 2,
        ANY: 0,
    }
    rows = now_rows([("note", 1, 1), ("x" * 101, 2, 2), ("y" * 9000, 3, 4)])
    assert [
        (row["biz_type"], row["enqueued"], row["relayed"]) for row in rows if row["width"] == 10
    ] == [("note", 1, 1), (UNKNOWN, 5, 6)]


def test_all_processes_become_one_row_in_each_width() -> None:
    taken = [
        (bucket(place), "main", "chat", 0, 0, 10, 1, 2, 3, 4, [5] * 32, histogram.VERSION)
        for place in (0, 0, 5, 6)
    ]
    rows = rollup.merged(taken)
    assert {(row["width"], row["bucket"], row["consumed"]) for row in rows} == {
        (10, "2026-01-01T12:00:00+00:00", 20),
        (10, "2026-01-01T12:00:50+00:00", 10),
        (10, "2026-01-01T12:01:00+00:00", 10),
        (60, "2026-01-01T12:00:00+00:00", 30),
        (60, "2026-01-01T12:01:00+00:00", 10),
        (3600, "2026-01-01T12:00:00+00:00", 40),
    }
    assert {row["width"]: row["latency"][0] for row in rows if row["width"] == 3600} == {3600: 20}


def test_histograms_of_other_bounds_are_not_mixed() -> None:
    old = (bucket(0), "main", "chat", 0, 0, 1, 0, 0, 0, 0, [7] * 32, 0)
    new = (bucket(0), "main", "chat", 0, 0, 1, 0, 0, 0, 0, [5] * 32, histogram.VERSION)
    for taken in ([old, new], [new, old]):
        row = rollup.merged(taken)[0]
        assert (row["consumed"], row["latency"][0], row["bounds"]) == (2, 5, histogram.VERSION)


def test_many_processes_write_seldom() -> None:
    assert beat_seconds(1) == 5.0
    assert beat_seconds(2000) == 20.0
