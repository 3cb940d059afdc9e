"""How far a partition is, without Faust.

Positionings, holes, runs in flight, what may be committed.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from streams.worker.driver.progress import Fetched, PartitionProgress, Progress
from streams.worker.driver.runs import Run


class Record(NamedTuple):
    offset: int


def run(first: int, end: int) -> Run:
    return Run("t", 0, [Record(offset) for offset in range(first, end)])


@pytest.fixture
def partition() -> PartitionProgress:
    """Positioned at offset 5."""
    positioned = PartitionProgress()
    positioned.expected = 5
    return positioned


def test_a_partition_that_was_never_positioned_takes_what_comes() -> None:
    assert PartitionProgress().judge(7, epoch=1) is Fetched.NEXT


def test_runs_lead_from_one_expected_offset_to_the_next(partition: PartitionProgress) -> None:
    assert partition.judge(5, epoch=1) is Fetched.NEXT
    partition.deliver(run(5, 10))
    assert partition.judge(10, epoch=1) is Fetched.NEXT
    assert (partition.expected, partition.ledger.committable()) == (10, None)


def test_a_hole_is_believed_when_it_is_seen_twice_in_one_epoch(
    partition: PartitionProgress,
) -> None:
    assert partition.judge(8, epoch=1) is Fetched.HOLE
    assert partition.judge(8, epoch=2) is Fetched.HOLE, "the same fetch, dropped in between"
    assert partition.judge(9, epoch=2) is Fetched.HOLE, "another hole"
    assert partition.judge(9, epoch=2) is Fetched.NEXT


def test_a_log_that_lost_its_end_takes_its_offsets_with_it(partition: PartitionProgress) -> None:
    in_flight = run(5, 10)
    partition.deliver(in_flight)
    partition.confirmed = 5
    assert partition.judge(3, epoch=1) is Fetched.HOLE
    assert partition.judge(3, epoch=1) is Fetched.SHORTER
    assert partition.confirmed is None
    in_flight.acked = True
    assert partition.ledger.committable() is None, "its offset is of the log that is gone"
    assert in_flight.current, "what it holds is persisted all the same"


def test_acks_from_before_a_positioning_count_no_more(partition: PartitionProgress) -> None:
    old, new = run(5, 10), run(5, 8)
    partition.deliver(old)
    partition.forget()
    assert (partition.expected, partition.confirmed, old.current) == (None, None, False)
    partition.deliver(new)
    old.acked = True
    assert partition.ledger.committable() is None
    new.acked = True
    assert partition.ledger.committable() == 8


def test_a_stretch_without_records_is_passed_over_once_nothing_came_again(
    partition: PartitionProgress,
) -> None:
    assert not partition.came_to_nothing(7, epoch=1), "it was not read again yet"
    partition.read_again(epoch=1)
    assert not partition.came_to_nothing(5, epoch=1), "aiokafka was not there"
    assert not partition.came_to_nothing(7, epoch=2), "another epoch"
    assert partition.came_to_nothing(7, epoch=1)
    assert partition.pass_over(7)
    assert (partition.expected, partition.ledger.committable()) == (7, 7)
    assert not partition.came_to_nothing(9, epoch=1), "each stretch is read again by itself"


def test_what_kafka_deleted_at_the_end_is_not_passed_over_before_it_is_told(
    partition: PartitionProgress,
) -> None:
    """Whoever came after this worker would have begun behind it."""
    partition.note_deleted((5, 9))
    assert not partition.pass_over(9)
    partition.note_deleted(None)
    assert not partition.pass_over(10), "a marker behind it does not make it told"
    partition.note_deleted((10, 12))
    assert not partition.pass_over(12)
    assert (partition.expected, partition.ledger.committable()) == (12, None)
    after = run(12, 13)
    partition.deliver(after)
    assert (after.deleted, partition.deleted) == ((5, 12), None)
    after.acked = True
    assert partition.ledger.committable() == 13


def test_a_run_in_flight_is_never_passed_over(partition: PartitionProgress) -> None:
    partition.read_again(epoch=1)
    partition.deliver(run(5, 6))
    assert not partition.came_to_nothing(9, epoch=1)
    assert partition.expected == 6


def test_records_that_were_lost_come_again_once(partition: PartitionProgress) -> None:
    assert not partition.came_again(5, epoch=1)
    partition.read_again(epoch=1)
    assert partition.came_again(5, epoch=1)
    assert not partition.came_again(5, epoch=1)
    partition.read_again(epoch=1)
    assert not partition.came_again(5, epoch=2)


def test_every_positioning_is_an_epoch_of_all_partitions() -> None:
    progress = Progress()
    progress["a"].expected = progress["b"].expected = 5
    progress.forget(["a"])
    assert progress.epoch == 1
    assert progress["a"].expected is None
    assert progress["b"].expected == 5
    progress.forget([])
    assert progress.epoch == 2
