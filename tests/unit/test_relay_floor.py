"""The floor never passes a row that is not published yet."""

from __future__ import annotations

import itertools

import pytest

from streams.backoff import delay
from streams.database.partitions import NEAR, fitting_width, nearest_first
from streams.relay.leader.maintenance import needed_ahead
from streams.relay.postgres.floor import Sample, reached, settle
from streams.relay.postgres.lsn import lsn_number, lsn_text


def test_a_sample_without_writers_waits_for_the_end_of_the_wal_only() -> None:
    sample = settle(Sample(9, frozenset()), frozenset(), 500)
    assert not reached(sample, 499)
    assert reached(sample, 500)


def test_a_sample_waits_for_each_of_its_writers() -> None:
    sample = settle(Sample(9, frozenset({"3/1", "4/1"})), frozenset({"4/1"}), 500)
    assert sample.lsn is None
    assert not reached(sample, 10_000)
    sample = settle(sample, frozenset(), 600)
    assert (sample.lsn, reached(sample, 599), reached(sample, 600)) == (600, False, True)


def test_later_writers_do_not_hold_it_back() -> None:
    sample = settle(Sample(9, frozenset({"3/1"})), frozenset({"5/7", "6/2"}), 500)
    assert sample.lsn == 500


def test_the_wal_end_is_that_of_the_moment_when_the_last_writer_had_ended() -> None:
    sample = settle(Sample(9, frozenset()), frozenset(), 500)
    assert settle(sample, frozenset(), 900).lsn == 500


def test_a_writer_that_left_is_not_taken_for_one_that_reuses_its_name() -> None:
    sample = settle(Sample(9, frozenset({"3/1", "4/1"})), frozenset({"4/1"}), 500)
    assert settle(sample, frozenset({"3/1"}), 600).lsn == 600


def test_nothing_confirmed_means_no_floor() -> None:
    assert not reached(Sample(9, frozenset(), 1), None)


def test_positions_are_numbers_inside_and_text_outside() -> None:
    assert lsn_text(lsn_number("16/B374D848")) == "16/B374D848"
    assert lsn_number("1/0") == 2**32


def test_partitions_reach_as_far_as_the_rate_asks_within_bounds() -> None:
    assert needed_ahead(None, (0.0, 500), 3.0, 1000, 0) == 1000
    assert needed_ahead((0.0, 0), (60.0, 60), 1 / 24, 1000, 0) == 3600
    assert needed_ahead((0.0, 0), (60.0, 0), 3.0, 1000, 0) == 1000
    assert needed_ahead((0.0, 0), (60.0, 600), 3.0, 1000, 0) == 36_000
    # Days ahead, little by little: what a burst would need is not made at once.
    assert needed_ahead((0.0, 0), (60.0, 600), 3.0, 1000, 100_000) == 110_000
    assert needed_ahead((0.0, 0), (60.0, 600), 3.0, 1000, 10**7) == 2_592_000


def test_waiting_doubles_and_ends_at_the_limit() -> None:
    assert 0.1 <= delay(0, 10.0) <= 0.2
    assert 0.4 <= delay(2, 10.0) <= 0.8
    assert all(5.0 <= delay(attempt, 10.0) <= 10.0 for attempt in (6, 50, 10_000))


@pytest.mark.parametrize(
    ("rate", "days", "width"),
    [
        (0.001, 14.0, 10_000),
        (10.0, 14.0, 500_000),
        (1000.0, 14.0, 50_000_000),
        (30_000.0, 14.0, 1_000_000_000),
        (30_000.0, 1.0, 100_000_000),
    ],
)
def test_a_partition_is_as_wide_as_keeps_a_few_dozen_alive(
    rate: float, days: float, width: int
) -> None:
    assert fitting_width(rate, days) == width
    if width > 10_000:
        assert 20 <= rate * days * 86_400 / width <= 60


@pytest.mark.parametrize(("begin", "end"), [(0, 10**9), (10**9, 0), (5, 6), (6, 5), (7, 7)])
def test_what_is_near_is_looked_at_before_what_is_far_away(begin: int, end: int) -> None:
    ranges = list(nearest_first(begin, end))
    if begin == end:
        assert ranges == []
        return
    assert ranges[0][1] - ranges[0][0] <= NEAR and begin in ranges[0]
    # Together they are everything between the two, each id once, in few steps.
    rising = ranges if begin < end else ranges[::-1]
    assert (rising[0][0], rising[-1][1]) == (min(begin, end), max(begin, end))
    assert all(lower[1] == upper[0] for lower, upper in itertools.pairwise(rising))
    assert len(ranges) <= 6
