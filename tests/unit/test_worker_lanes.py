"""Lanes: one item of a lane at a time, several lanes at once, full lanes held back."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Hashable

import pytest

from streams.worker.lanes import Lanes


async def test_items_of_one_lane_are_worked_one_by_one_in_order_while_others_progress() -> None:
    active: Counter[str] = Counter()
    most, done = 0, []

    async def work(item: tuple[str, int]) -> None:
        nonlocal most
        lane, _ = item
        active[lane] += 1
        assert active[lane] == 1
        most = max(most, active.total())
        for _ in range(3):
            await asyncio.sleep(0)
        active[lane] -= 1
        done.append(item)

    async with Lanes(work, asyncio.Semaphore(3), lambda lane: None, lambda lane: None) as lanes:
        for number in range(20):
            for lane in "abcde":
                lanes.submit(lane, (lane, number))
    assert most == 3
    for lane in "abcde":
        assert [number for name, number in done if name == lane] == list(range(20))


async def test_a_full_lane_is_held_back_and_let_go_again() -> None:
    calls: list[tuple[str, Hashable]] = []
    go = asyncio.Event()

    async def work(item: int) -> None:
        await go.wait()

    lanes = Lanes(
        work, asyncio.Semaphore(1), lambda lane: calls.append(("full", lane)), lambda lane: calls.append(("room", lane))
    )
    async with lanes:
        for item in range(4):
            lanes.submit("a", item)
        assert calls[0] == ("full", "a")
        go.set()
    assert calls[-1] == ("room", "a")


async def test_an_error_in_one_lane_ends_them_all() -> None:
    async def work(item: int) -> None:
        if item:
            raise ValueError(item)
        await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup):
        async with Lanes(work, asyncio.Semaphore(2), lambda lane: None, lambda lane: None) as lanes:
            lanes.submit("a", 0)
            lanes.submit("b", 1)
