"""The ledger decides which offset may be committed: never one past a run that is not acked."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.worker.driver.runs import Ledger, Run, split


@dataclass
class Record:
    offset: int
    serialized_value_size: int = 10


def run(first: int, count: int = 10) -> Run:
    return Run("t", 0, [Record(first + n) for n in range(count)])


def test_nothing_is_committable_before_the_first_run_is_acked() -> None:
    ledger, first, second = Ledger(), run(0), run(10)
    ledger.open(first)
    ledger.open(second)
    second.acked = True
    assert ledger.committable() is None
    first.acked = True
    assert ledger.committable() == 20
    assert ledger.committable() == 20


def test_a_log_that_lost_its_end_takes_the_old_offsets_with_it() -> None:
    ledger, done, old, new = Ledger(), run(90), run(100), run(30)
    ledger.open(done)
    ledger.open(old)
    done.acked = True
    assert ledger.committable() == 100
    ledger.detach()
    ledger.open(new)
    old.acked = True
    assert (ledger.committable(), old.current) == (None, True)
    new.acked = True
    assert ledger.committable() == 40


def test_an_ack_from_before_a_reset_does_not_count_for_the_run_fetched_after_it() -> None:
    ledger, old, new = Ledger(), run(0), run(0)
    ledger.open(old)
    ledger.reset()
    ledger.open(new)
    old.acked = True
    assert ledger.committable() is None
    assert not old.current
    assert new.current
    new.acked = True
    assert ledger.committable() == 10


def test_a_run_that_was_dropped_does_not_block_after_a_reset() -> None:
    ledger, dropped, again = Ledger(), run(0), run(0)
    ledger.open(dropped)
    ledger.reset()
    ledger.open(again)
    again.acked = True
    assert ledger.committable() == 10


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 5)), max_size=20), st.randoms())
def test_the_committed_offset_is_the_end_of_the_longest_acked_prefix(
    shape: list[tuple[int, int]], random: object
) -> None:
    ledger, runs, offset = Ledger(), [], 0
    for count, hole in shape:
        runs.append(run(offset + hole, count))
        offset = runs[-1].end
        ledger.open(runs[-1])
    order = list(range(len(runs)))
    random.shuffle(order)  # type: ignore[attr-defined]
    for index in order:
        runs[index].acked = True
        prefix = next((n for n, one in enumerate(runs) if not one.acked), len(runs))
        assert ledger.committable() == (runs[prefix - 1].end if prefix else None)


@pytest.mark.parametrize("most", [1, 3, 1000])
@given(sizes=st.lists(st.integers(-1, 300), min_size=1, max_size=60))
def test_split_keeps_every_record_in_order_within_both_limits(most: int, sizes: list[int]) -> None:
    records = [Record(7 + n, size) for n, size in enumerate(sizes)]
    runs = split("t", 3, records, most, 500)
    assert [record for one in runs for record in one.records] == records
    assert all(len(one) <= most for one in runs)
    assert all(
        len(one) == 1 or sum(max(r.serialized_value_size, 0) for r in one.records) <= 500
        for one in runs
    )
    assert [(one.first, one.end) for one in runs] == [
        (one.records[0].offset, one.records[-1].offset + 1) for one in runs
    ]


def test_large_records_weigh_more_than_one() -> None:
    """What may wait in memory, and share a transaction, is bounded in bytes too."""
    large = [Record(n, 1_000_000) for n in range(6)]
    assert [run.weight for run in split("t", 0, large, 1000, 4_000_000)] == [1000, 500]
    small = [Record(n, 300) for n in range(1500)]
    assert [run.weight for run in split("t", 0, small, 1000, 4_000_000)] == [1000, 500]
