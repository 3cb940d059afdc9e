"""The watch sees what no outage explains, and nothing else."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

from streams.worker.ledger import Ledger, Run
from streams.worker.watch import LIMIT, Watch


class TP(NamedTuple):
    topic: str
    partition: int


class Record(NamedTuple):
    offset: int


class Consumer:
    """The few names of the driver that the watch reads."""

    run_topics = frozenset({"t"})

    def __init__(self) -> None:
        self.ledgers: defaultdict[Any, Ledger] = defaultdict(Ledger)
        self.committed: dict[Any, int] = {}

    def assignment(self) -> set[TP]:
        return {TP("t", 0), TP("changelog", 0)}

    def confirmed(self, tp: TP) -> int | None:
        return self.committed.get(tp)


def delivered(consumer: Consumer, offset: int, *, taken: bool, acked: bool = False) -> Run:
    run = Run("t", 0, [Record(offset)], taken=taken, acked=acked, opened=0.0)
    consumer.ledgers[TP("t", 0)].open(run)
    return run


def test_a_run_that_waits_for_the_database_is_no_stall() -> None:
    consumer = Consumer()
    delivered(consumer, 0, taken=True)
    assert Watch().stall(consumer, now=10 * LIMIT) is None


def test_a_run_that_never_reached_its_agent_is_one() -> None:
    consumer = Consumer()
    delivered(consumer, 7, taken=False)
    assert Watch().stall(consumer, now=LIMIT - 1) is None
    stall = Watch().stall(consumer, now=LIMIT + 1)
    assert stall is not None
    assert (stall["partition"], stall["offset"]) == (0, 7)


def test_commits_that_do_not_follow_are_one_and_commits_that_do_are_not() -> None:
    consumer, watch = Consumer(), Watch()
    delivered(consumer, 0, taken=True, acked=True)
    assert watch.stall(consumer, now=100.0) is None
    consumer.committed[TP("t", 0)] = 1
    assert watch.stall(consumer, now=100.0 + LIMIT + 1) is None
    delivered(consumer, 1, taken=True, acked=True)
    assert watch.stall(consumer, now=200.0) is None
    assert watch.stall(consumer, now=200.0 + LIMIT - 1) is None
    assert watch.stall(consumer, now=200.0 + LIMIT + 1) is not None
