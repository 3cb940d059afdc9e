"""Gaps: exactly the ids between floor and newest that were not read, in few ranges."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streams.relay.source.gaps import Gaps


def unread(gaps: Gaps) -> set[int]:
    lows, highs = gaps.ranges
    return {one for low, high in zip(lows, highs, strict=True) for one in range(low, high + 1)}


def test_an_id_that_was_passed_over_is_a_gap_until_it_is_read() -> None:
    gaps = Gaps(10)
    gaps.read([12, 13, 17])
    assert gaps.ranges == ([11, 14], [11, 16])
    gaps.read([15, 18])
    assert gaps.ranges == ([11, 14, 16], [11, 14, 16])
    gaps.settle(14)
    assert gaps.ranges == ([16], [16])
    gaps.settle(20)
    assert (gaps.ranges, gaps.newest) == (([], []), 20)


def test_a_large_open_transaction_is_one_range() -> None:
    gaps = Gaps(0)
    gaps.read([1_000_000])
    assert gaps.ranges == ([1], [999_999])


@given(st.lists(st.tuples(st.booleans(), st.sets(st.integers(1, 60), max_size=20)), max_size=12))
def test_gaps_are_what_a_set_would_say(steps: list[tuple[bool, set[int]]]) -> None:
    gaps, floor, newest, read = Gaps(0), 0, 0, set[int]()
    for settles, ids in steps:
        if settles and ids:
            floor = max(floor, min(min(ids), newest))
            gaps.settle(floor)
        else:
            fresh = sorted(one for one in ids if one > floor and one not in read)
            gaps.read(fresh)
            read.update(fresh)
            newest = max([newest, *fresh])
        assert gaps.newest == newest
        assert unread(gaps) == {one for one in range(floor + 1, newest + 1) if one not in read}


def test_an_id_that_others_read_is_no_gap() -> None:
    gaps = Gaps(10)
    gaps.look(20, [12, 15], [13, 15])
    assert (gaps.ranges, gaps.newest) == (([12, 15], [13, 15]), 20)
    gaps.look(30, [25, 29, 35], [25, 33, 36])
    assert (gaps.ranges, gaps.newest) == (([12, 15, 25, 29], [13, 15, 25, 30]), 30)
    gaps.read([12, 20, 29, 30])
    assert gaps.ranges == ([13, 15, 25], [13, 15, 25])


@given(st.sets(st.integers(1, 60)), st.sets(st.integers(1, 60)), st.integers(1, 60))
def test_looking_leaves_what_is_not_visible_up_to_where_it_looked(
    visible: set[int], mine: set[int], upto: int
) -> None:
    gaps, last = Gaps(0), max(visible, default=0)
    holes = sorted(set(range(1, last + 1)) - visible)
    gaps.look(min(upto, last), holes, holes)
    gaps.read(sorted(one for one in mine if one <= min(upto, last)))
    assert unread(gaps) == {one for one in holes if one <= upto} - mine
