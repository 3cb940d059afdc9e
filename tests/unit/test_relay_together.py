"""Several things at once: what ends them, and what they leave behind in the task that waits for them."""

from __future__ import annotations

import asyncio

import pytest

from streams.tasks import Done, together


async def fail(error: Exception, *, after: asyncio.Event | None = None) -> None:
    if after is not None:
        await after.wait()
    raise error


async def test_the_first_thing_that_goes_wrong_is_raised_and_ends_the_others() -> None:
    ended = asyncio.Event()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(ValueError, match="first"):
        await together(wait(), fail(ValueError("first")))
    assert ended.is_set()


async def test_whoever_is_done_ends_all() -> None:
    await together(asyncio.Event().wait(), fail(Done()))


@pytest.mark.parametrize("error", [ValueError("x"), Done()])
async def test_a_failure_leaves_no_request_to_cancel_behind(error: Exception) -> None:
    """On Python 3.11.2 the next timeout raised CancelledError, and the relay ended when its database did."""
    late = asyncio.Event()
    asyncio.get_running_loop().call_soon(late.set)
    if isinstance(error, Done):
        await together(asyncio.Event().wait(), fail(error, after=late))
    else:
        with pytest.raises(ValueError, match="x"):
            await together(asyncio.Event().wait(), fail(error, after=late))
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()


async def test_who_is_cancelled_while_waiting_cancels_them_and_waits_for_their_end() -> None:
    ended = asyncio.Event()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.set()

    waiting = asyncio.create_task(together(wait()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()
