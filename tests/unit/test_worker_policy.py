"""What a record means, for each state its message may be in."""

from __future__ import annotations

import pytest

from streams.worker.run.decide import TERMINAL, Decision, Fact, decision_on


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
    assert decision_on(1, 1, Fact(known=True, status="parked", first=first), blocked=True) is expected


@pytest.mark.parametrize(
    ("record_id", "first", "expected"),
    [(9, True, Decision.AGAIN), (9, False, Decision.QUEUE), (1, True, Decision.SKIP), (8, True, Decision.SKIP)],
)
def test_a_replay_moves_only_by_its_own_record(record_id: int, first: bool, expected: Decision) -> None:
    fact = Fact(known=True, status="replaying", source_id=9, first=first)
    assert decision_on(record_id, 1, fact, blocked=True) is expected
