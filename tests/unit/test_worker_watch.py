"""The watch sees what no outage explains, and nothing else."""

from __future__ import annotations

from typing import NamedTuple

from streams.worker.driver.progress import Progress
from streams.worker.driver.runs import Run
from streams.worker.driver.stall import LIMIT, StallDetector
from streams.worker.driver.unread import MARKERS, UNREAD, Unread


class TP(NamedTuple):
    topic: str
    partition: int


class Record(NamedTuple):
    offset: int


class Consumer:
    """The few names of the driver that the watch reads."""

    run_topics = frozenset({"t"})

    def __init__(self) -> None:
        self.progress = Progress()
        self.touch = True

    def in_touch(self) -> bool:
        return self.touch

    def assignment(self) -> set[TP]:
        return {TP("t", 0), TP("changelog", 0)}


def delivered(consumer: Consumer, offset: int, *, taken: bool, acked: bool = False) -> Run:
    run = Run("t", 0, [Record(offset)], taken=taken, acked=acked, opened=0.0)
    consumer.progress[TP("t", 0)].deliver(run)
    return run


def test_a_run_that_waits_for_the_database_is_no_stall() -> None:
    consumer = Consumer()
    delivered(consumer, 0, taken=True)
    assert StallDetector().stall(consumer, now=10 * LIMIT) is None


def test_a_run_that_never_reached_its_agent_is_one() -> None:
    consumer = Consumer()
    delivered(consumer, 7, taken=False)
    assert StallDetector().stall(consumer, now=LIMIT - 1) is None
    stall = StallDetector().stall(consumer, now=LIMIT + 1)
    assert stall is not None
    assert (stall["partition"], stall["offset"]) == (0, 7)


def test_commits_that_do_not_follow_are_one_and_commits_that_do_are_not() -> None:
    consumer, watch = Consumer(), StallDetector()
    delivered(consumer, 0, taken=True, acked=True)
    assert watch.stall(consumer, now=100.0) is None
    consumer.progress[TP("t", 0)].confirmed = 1
    assert watch.stall(consumer, now=100.0 + LIMIT + 1) is None
    delivered(consumer, 1, taken=True, acked=True)
    assert watch.stall(consumer, now=200.0) is None
    assert watch.stall(consumer, now=200.0 + LIMIT - 1) is None
    assert watch.stall(consumer, now=200.0 + LIMIT + 1) is not None


def test_who_commits_seldom_is_given_the_time() -> None:
    consumer, watch = Consumer(), StallDetector(commit_interval=60.0)
    delivered(consumer, 0, taken=True, acked=True)
    assert watch.stall(consumer, now=100.0) is None
    assert watch.stall(consumer, now=100.0 + LIMIT + 59) is None
    assert watch.stall(consumer, now=100.0 + LIMIT + 61) is not None


def test_a_persisted_run_waits_for_a_broker_that_is_away() -> None:
    consumer, watch = Consumer(), StallDetector()
    delivered(consumer, 0, taken=True, acked=True)
    assert watch.stall(consumer, now=0.0) is None
    consumer.touch = False
    assert watch.stall(consumer, now=20 * LIMIT) is None
    consumer.touch = True
    assert watch.stall(consumer, now=20 * LIMIT + 1) is None
    assert watch.stall(consumer, now=21 * LIMIT) is None
    assert watch.stall(consumer, now=21 * LIMIT + 2) is not None


def test_a_log_that_goes_on_behind_what_was_delivered_is_read_again_once_for_each_end() -> None:
    unread, tp = Unread(), TP("t", 0)
    assert not unread.overdue(tp, 5, 7, 0.0)
    assert not unread.overdue(tp, 5, 7, UNREAD - 1)
    assert unread.overdue(tp, 5, 7, UNREAD)
    assert not unread.overdue(tp, 5, 7, 9 * UNREAD), "two transaction markers, perhaps"
    assert unread.overdue(tp, 5, 8, 9 * UNREAD + 1)


def test_where_nothing_came_of_what_was_read_it_is_read_again_sooner() -> None:
    unread, tp = Unread(), TP("t", 0)
    assert not unread.overdue(tp, 5, 7, 0.0, read=True)
    assert unread.overdue(tp, 5, 7, MARKERS, read=True)
    assert not unread.overdue(tp, 5, 7, 9 * UNREAD, read=True)


def test_records_that_are_delivered_or_worked_are_not_read_again() -> None:
    unread, tp = Unread(), TP("t", 0)
    assert not unread.overdue(tp, 5, 7, 0.0)
    assert not unread.overdue(tp, 6, 7, UNREAD), "something came"
    assert not unread.overdue(tp, 6, 6, 3 * UNREAD), "that was all, or what came is being worked"
    assert not unread.overdue(tp, 6, 9, 3 * UNREAD + 1), "the log went on only now"


def test_a_run_of_which_nothing_ends_is_a_stall_and_one_that_waits_for_its_lane_is_none() -> None:
    consumer = Consumer()
    run = delivered(consumer, 7, taken=True)
    watch = StallDetector(patience=60.0)
    assert watch.stall(consumer, now=10_000) is None
    run.progressed = 100.0
    assert watch.stall(consumer, now=160.0) is None
    stall = watch.stall(consumer, now=161.0)
    assert stall is not None
    assert (stall["offset"], stall["reason"]) == (7, "nothing of a run ends for 60 s")
