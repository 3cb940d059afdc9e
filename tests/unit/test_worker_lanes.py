"""Lanes: one group of a lane at a time, several lanes at once.

Little work is gathered, full sources are held back.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import pytest

from streams.worker.driver.dispatcher import Dispatcher, Slots


def nothing(source: Hashable) -> None:
    pass


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def test_items_of_one_lane_are_worked_one_by_one_in_order_while_others_progress() -> None:
    active: Counter[str] = Counter()
    most = 0
    done: list[tuple[str, int]] = []

    async def work(items: Sequence[tuple[str, int]]) -> bool:
        nonlocal most
        for lane in {lane for lane, _ in items}:
            active[lane] += 1
            assert active[lane] == 1
        most = max(most, active.total())
        for _ in range(3):
            await asyncio.sleep(0)
        active.subtract({lane for lane, _ in items})
        done.extend(items)
        return True

    async with Dispatcher(work, Slots(3), 2, nothing, nothing) as lanes:
        for number in range(20):
            for lane in "abcde":
                lanes.submit(lane, lane, (lane, number), 2)
    assert most == 3
    for lane in "abcde":
        assert [number for name, number in done if name == lane] == list(range(20))


async def test_little_work_is_gathered_while_a_transaction_is_under_way() -> None:
    groups = []
    go = asyncio.Event()

    async def work(items: Sequence[str]) -> bool:
        groups.append(list(items))
        await go.wait()
        return True

    async with Dispatcher(work, Slots(4), 100, nothing, nothing) as lanes:
        lanes.submit("a", "a", "a1", 1)
        await until(lambda: bool(groups))
        for name in ("a2", "b1", "c1", "b2"):
            lanes.submit(name[0], name[0], name, 1)
        await asyncio.sleep(0)
        assert groups == [["a1"]]
        go.set()
    assert groups == [["a1"], ["a2", "b1", "b2", "c1"]]


async def test_runs_that_come_at_once_share_a_transaction_though_nothing_is_under_way() -> None:
    groups = []

    async def work(items: Sequence[str]) -> bool:
        groups.append(list(items))
        return True

    async with Dispatcher(work, Slots(4), 100, nothing, nothing) as lanes:
        for name in "abc":
            lanes.submit(name, name, name, 1)
        assert groups == []
        await until(lambda: bool(groups))
        lanes.submit("a", "a", "last", 1)
    assert groups == [["a", "b", "c"], ["last"]]


async def test_a_row_after_a_transaction_does_not_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What arrived while it was under way was to wait this long, and went with its end.

    That is over then.
    """
    monkeypatch.setattr("streams.worker.driver.dispatcher.GATHER", 1000)
    groups = []
    go = asyncio.Event()

    async def work(items: Sequence[str]) -> bool:
        groups.append(list(items))
        await go.wait()
        return True

    async with Dispatcher(work, Slots(4), 100, nothing, nothing) as lanes:
        lanes.submit("a", "a", "first", 1)
        await until(lambda: bool(groups))
        lanes.submit("b", "b", "during", 1)
        go.set()
        await until(lambda: len(groups) == 2 and not lanes._active)
        lanes.submit("a", "a", "after", 1)
        await until(lambda: len(groups) == 3)
    assert groups == [["first"], ["during"], ["after"]]


async def test_a_stuck_transaction_does_not_hold_little_work_back() -> None:
    done: list[str] = []
    stuck = asyncio.Event()

    async def work(items: Sequence[str]) -> bool:
        if "stuck" in items:
            await stuck.wait()
        done.extend(items)
        if "other" in items:
            stuck.set()
        return True

    async with asyncio.timeout(5), Dispatcher(work, Slots(4), 100, nothing, nothing) as lanes:
        lanes.submit("a", "a", "stuck", 1)
        await until(lambda: lanes._active == 1)
        lanes.submit("b", "b", "other", 1)
    assert done == ["other", "stuck"]


async def test_a_group_that_fails_is_worked_item_by_item_in_order() -> None:
    groups = []

    async def work(items: Sequence[str]) -> bool:
        groups.append(list(items))
        return len(items) == 1

    async with Dispatcher(work, Slots(1), 100, nothing, nothing) as lanes:
        lanes.submit("x", "x", "x", 1)
        await until(lambda: bool(groups))
        for name in ("a1", "a2", "b1", "a3"):
            lanes.submit(name[0], name[0], name, 1)
    assert groups[:2] == [["x"], ["a1", "a2", "a3", "b1"]]
    assert sorted(groups[2:]) == [["a1"], ["a2"], ["a3"], ["b1"]]
    assert [group[0] for group in groups[2:] if group[0][0] == "a"] == ["a1", "a2", "a3"]


async def test_an_item_that_is_alone_shares_no_group() -> None:
    groups = []

    async def work(items: Sequence[str]) -> bool:
        groups.append(list(items))
        return True

    async with Dispatcher(work, Slots(1), 100, nothing, nothing) as lanes:
        lanes.submit("x", "x", "x", 1)
        await until(lambda: bool(groups))
        for name in ("a1", "a2!", "a3", "b1"):
            lanes.submit(name[0], name[0], name, 1, alone=name.endswith("!"))
    assert groups == [["x"], ["a1", "b1"], ["a2!"], ["a3"]]


async def test_a_full_source_is_held_back_and_let_go_again() -> None:
    calls: list[tuple[str, Hashable]] = []
    go = asyncio.Event()

    async def work(items: Sequence[int]) -> bool:
        await go.wait()
        return True

    lanes = Dispatcher(
        work,
        Slots(1),
        3,
        lambda tp: calls.append(("full", tp)),
        lambda tp: calls.append(("room", tp)),
    )
    async with lanes:
        for item in range(5):
            lanes.submit("a", "tp", item, 1)
        assert calls[0] == ("full", "tp")
        go.set()
    assert calls[-1] == ("room", "tp")


async def test_an_error_in_one_lane_ends_them_all() -> None:
    async def work(items: Sequence[int]) -> bool:
        if items[0]:
            raise ValueError(items)
        await asyncio.Event().wait()
        return True

    with pytest.raises(ExceptionGroup):
        async with Dispatcher(work, Slots(2), 1, nothing, nothing) as lanes:
            lanes.submit("a", "a", 0, 1)
            lanes.submit("b", "b", 1, 1)


async def test_a_run_that_waits_for_something_leaves_its_slot_to_others() -> None:
    """A table without a column must not stop other topics, nor other partitions of its own."""
    slots = Slots(2)
    mended = asyncio.Event()
    done: list[str] = []

    async def work(items: Sequence[str]) -> bool:
        while items[0].startswith("broken") and not mended.is_set():
            await slots.rest(0.01)
        done.extend(items)
        return True

    async with (
        asyncio.timeout(5),
        Dispatcher(work, slots, 1, nothing, nothing) as one,
        Dispatcher(work, slots, 1, nothing, nothing) as other,
    ):
        for number in range(4):
            one.submit(number, number, f"broken {number}", 1)
        for number in range(4, 8):
            one.submit(number, number, f"good {number}", 1)
            other.submit(number, number, f"other {number}", 1)
        while len(done) < 8:
            await asyncio.sleep(0.01)
        assert not any(item.startswith("broken") for item in done)
        mended.set()
    assert len(done) == 12
    assert not slots.resting


async def test_a_run_that_rests_does_not_give_its_slot_away_twice() -> None:
    slots = Slots(2)
    active = most = 0

    async def work(items: Sequence[int]) -> bool:
        nonlocal active, most
        for _ in range(3):
            active += 1
            most = max(most, active)
            await asyncio.sleep(0)
            active -= 1
            await slots.rest(0.001)
        return True

    async with asyncio.timeout(5), Dispatcher(work, slots, 1, nothing, nothing) as lanes:
        for number in range(20):
            lanes.submit(number, number, number, 1)
    assert most <= 2
