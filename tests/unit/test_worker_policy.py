"""What a record means, for each state its message may be in."""

from __future__ import annotations

import pytest

from streams.worker.database.connections import TransactionFailed
from streams.worker.driver.runs import Run
from streams.worker.failure.history import FailureHistory
from streams.worker.failure.strategy import Strategy
from streams.worker.run.attempt import Outcome
from streams.worker.run.decide import TERMINAL, Decision, Fact, decision_on
from streams.worker.run.suspects import TakenOver
from streams.worker.run.until_done import until_done


def test_without_an_outbox_row_a_record_is_rejected() -> None:
    assert decision_on(1, 1, Fact(known=False), blocked=False) is Decision.REJECT


@pytest.mark.parametrize(("blocked", "expected"), [(False, Decision.NEW), (True, Decision.PARK)])
def test_a_new_message_is_claimed_or_parks(blocked: bool, expected: Decision) -> None:
    assert decision_on(1, 1, Fact(known=True), blocked=blocked) is expected


@pytest.mark.parametrize("status", TERMINAL)
@pytest.mark.parametrize("record_id", [1, 2, 3])
def test_terminal_is_terminal(status: str, record_id: int) -> None:
    fact = Fact(known=True, status=status, source_id=2, due=True, first=True)
    assert decision_on(record_id, 1, fact, blocked=False) is Decision.SKIP


@pytest.mark.parametrize(
    ("due", "first", "expected"),
    [(True, True, Decision.AGAIN), (False, True, Decision.SKIP), (True, False, Decision.SKIP)],
)
def test_a_retry_moves_when_it_is_due_and_first(due: bool, first: bool, expected: Decision) -> None:
    fact = Fact(known=True, status="retrying", attempts=1, due=due, first=first)
    assert decision_on(1, 1, fact, blocked=True) is expected


@pytest.mark.parametrize(("first", "expected"), [(True, Decision.AGAIN), (False, Decision.SKIP)])
def test_a_parked_message_moves_when_it_is_first(first: bool, expected: Decision) -> None:
    assert (
        decision_on(1, 1, Fact(known=True, status="parked", first=first), blocked=True) is expected
    )


@pytest.mark.parametrize(
    ("record_id", "first", "expected"),
    [
        (9, True, Decision.AGAIN),
        (9, False, Decision.QUEUE),
        (1, True, Decision.SKIP),
        (8, True, Decision.SKIP),
    ],
)
def test_a_replay_moves_only_by_its_own_record(
    record_id: int, first: bool, expected: Decision
) -> None:
    fact = Fact(known=True, status="replaying", source_id=9, first=first)
    assert decision_on(record_id, 1, fact, blocked=True) is expected


class Reachable:
    """A database that answers others."""

    slow_tries = 3

    async def wait(self, run: Run, error: Exception, tries: int) -> None:
        """Count nothing: nobody waits here."""
        raise AssertionError("it waited")

    async def rest(self, seconds: float) -> None:
        """Pause for as long as it takes others to run."""

    async def reachable(self) -> bool:
        """Whether the database answers others."""
        return True


async def test_a_partition_that_two_groups_take_from_each_other_is_tried_again_at_once() -> None:
    """Who waited found it taken again, and the other one too: both waited for ever."""
    run, tries = (
        Run("t", 0, []),
        iter([TakenOver("the other group's"), TakenOver("the other group's"), None]),
    )

    async def attempt(strategy: Strategy) -> Outcome:
        if (error := next(tries)) is not None:
            raise TransactionFailed(error, False, at_commit=False)
        return Outcome()

    assert (
        await until_done(run, attempt, Strategy.WHOLE, FailureHistory(), Reachable()) == Outcome()
    )
