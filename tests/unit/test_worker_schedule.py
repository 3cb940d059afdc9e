"""When a waiting conversation is woken, by what it waits for."""

from __future__ import annotations

from streams.worker.retries.schedule import RECONCILE, TICK, Schedule, noted
from streams.worker.set_aside import SetAside

HOUR = 3600.0
PLACE = (0, "c")


def parked(outbox_id: int) -> SetAside:
    return SetAside(outbox_id, "c", 0, "parked", due=0.0)


def calls(schedule: Schedule, heads: list[SetAside], seconds: float) -> list[float]:
    """When it is woken in these seconds; each call finds the next of the heads, or the last."""
    moments: list[float] = []
    now = 1e9
    noted(schedule, heads[:1], {PLACE}, now)
    while now < 1e9 + seconds:
        now += TICK
        for where in schedule.take(now, 1000):
            assert where == PLACE
            moments.append(now - 1e9)
            head = heads[min(len(moments), len(heads) - 1)]
            noted(schedule, [head], {PLACE}, now)
    return moments


def test_a_head_that_nobody_takes_is_woken_ever_more_seldom() -> None:
    """It was woken in each tick, ten times a second, for ever."""
    schedule = Schedule()
    moments = calls(schedule, [parked(1)], HOUR)
    assert moments[1] < 1
    assert len(moments) < 15 + HOUR / RECONCILE
    assert moments[-1] - moments[-2] <= RECONCILE + 2 * TICK


def test_a_conversation_that_moves_is_woken_at_once_each_time() -> None:
    """It is worked in portions: each call finds another head."""
    moments = calls(Schedule(), [parked(number) for number in range(1000)], 100.0)
    assert len(moments) >= 999


def test_a_head_that_moves_after_a_long_time_is_woken_at_once_again() -> None:
    schedule = Schedule()
    calls(schedule, [parked(1)], HOUR)
    now = 2e9
    noted(schedule, [parked(2)], {PLACE}, now)
    assert schedule.take(now + TICK, 1000) == [PLACE]
    noted(schedule, [], {PLACE}, now)
    noted(schedule, [parked(1)], {PLACE}, now)
    assert schedule.take(now + TICK, 1000) == [PLACE]


def test_one_that_failed_again_is_woken_when_it_is_due_however_often() -> None:
    schedule = Schedule()
    for attempts in range(1, 20):
        now = 1e9 + attempts
        head = SetAside(1, "c", 0, "retrying", attempts, due=now)
        noted(schedule, [head], {PLACE}, now)
        assert schedule.take(now + TICK, 1000) == [PLACE]
