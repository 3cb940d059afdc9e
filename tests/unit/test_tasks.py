"""Several things at once: what ends them, and what they leave behind.

They leave it in the task that waits for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import subprocess
import sys
import threading
from collections.abc import Awaitable
from pathlib import Path
from typing import NoReturn

import pytest

import streams
from streams.tasks import apart, ended_by, first_to_end


async def forever(ended: asyncio.Event | None = None) -> NoReturn:
    try:
        await asyncio.Event().wait()
        raise AssertionError
    finally:
        await asyncio.sleep(0)
        if ended is not None:
            ended.set()


async def fail(error: BaseException, *, after: Awaitable[object] | None = None) -> NoReturn:
    if after is not None:
        await after
    raise error


async def value(text: str | None, *, after: Awaitable[object] | None = None) -> str | None:
    if after is not None:
        await after
    return text


async def leaves_nothing_behind() -> None:
    """On Python 3.11.2 the next timeout raised CancelledError.

    The relay ended when its database did.
    """
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()


async def test_the_first_thing_that_goes_wrong_is_raised_and_ends_the_others() -> None:
    ended = asyncio.Event()
    with pytest.raises(ValueError, match="first"):
        await first_to_end(forever(ended), fail(ValueError("first")))
    assert ended.is_set()
    await leaves_nothing_behind()


async def test_the_first_value_ends_all_and_none_ends_nothing() -> None:
    ended = asyncio.Event()
    assert (
        await first_to_end(forever(ended), value(None), value("done", after=asyncio.sleep(0.01)))
        == "done"
    )
    assert ended.is_set()
    await leaves_nothing_behind()


async def test_a_block_is_ended_wherever_it_waits_and_goes_on_behind_it() -> None:
    unwound = False
    async with ended_by(value("changed", after=asyncio.sleep(0.01))) as ending:
        try:
            await asyncio.Event().wait()
        finally:
            unwound = True
    assert unwound
    assert ending.outcome == "changed"
    await leaves_nothing_behind()


async def test_a_block_that_ends_by_itself_has_no_outcome_and_ends_the_others() -> None:
    ended = asyncio.Event()
    async with ended_by[str](value(None), forever(ended)) as ending:
        await asyncio.sleep(0)
    assert (ending.outcome, ended.is_set()) == (None, True)


async def test_an_outcome_that_comes_while_the_block_ends_cancels_nothing_behind_it() -> None:
    """The request to cancel is made and not delivered when the block is over."""
    late = asyncio.Event()
    async with ended_by(value("late", after=late.wait())) as ending:
        late.set()
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert ending.outcome in ("late", None)
    await leaves_nothing_behind()


async def test_an_outcome_in_the_moment_of_a_timeout_is_an_outcome() -> None:
    both = asyncio.get_running_loop().create_future()
    async with ended_by(value("now", after=both)) as ending:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0):
                    if not both.done():
                        both.set_result(None)
                    await asyncio.Event().wait()
    assert ending.outcome == "now"
    await leaves_nothing_behind()


async def test_an_error_of_the_block_is_raised_and_ends_the_others() -> None:
    ended = asyncio.Event()
    with pytest.raises(KeyError):
        async with ended_by(forever(ended)):
            await asyncio.sleep(0)
            raise KeyError
    assert ended.is_set()
    await leaves_nothing_behind()


async def test_one_within_another_leaves_no_cancellation_behind() -> None:
    with pytest.raises(ValueError, match="first"):
        await first_to_end(first_to_end(fail(ValueError("first")), forever()), forever())
    await leaves_nothing_behind()


async def test_the_first_failure_counts_whatever_the_block_raises_then() -> None:
    with pytest.raises(ValueError, match="first"):
        async with ended_by(fail(ValueError("first"))):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise KeyError from None
    await leaves_nothing_behind()


async def test_who_is_cancelled_from_outside_cancels_them_and_waits_for_their_end() -> None:
    ended = asyncio.Event()
    waiting: asyncio.Task[None] = asyncio.create_task(first_to_end(forever(ended)))
    for _ in range(3):
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()


async def test_a_request_from_outside_is_not_lost_beside_an_outcome() -> None:
    now = asyncio.Event()

    async def block() -> None:
        async with ended_by(value("now", after=now.wait())):
            await asyncio.Event().wait()

    task = asyncio.create_task(block())
    for _ in range(3):
        await asyncio.sleep(0)
    now.set()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_apart_returns_and_raises_what_the_call_does_in_the_callers_context() -> None:
    said = contextvars.ContextVar("said", default="nothing")
    said.set("something")

    def words(more: str, *, end: str) -> str:
        return f"{said.get()} {more}{end}"

    def failing() -> NoReturn:
        raise KeyError

    assert await apart(words, "more", end="!") == "something more!"
    with pytest.raises(KeyError):
        await apart(failing)


async def test_who_is_cancelled_leaves_the_call_behind() -> None:
    going_on = threading.Event()
    waiting = asyncio.create_task(apart(going_on.wait))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    going_on.set()
    await leaves_nothing_behind()


def test_a_process_ends_beside_a_call_that_does_not_return() -> None:
    program = """
import asyncio, threading
from streams.tasks import apart, first_to_end
async def main():
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    def hang():
        loop.call_soon_threadsafe(begun.set)
        threading.Event().wait()
    await first_to_end(apart(hang), begun.wait())
asyncio.run(main())
print("ended")
"""
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ended\n", "")


def test_a_relay_waits_for_no_thread_when_it_ends() -> None:
    """Whoever needs a thread there takes `apart`."""
    package = Path(streams.__file__).parent / "relay"
    assert [
        f"{file.relative_to(package)}"
        for file in sorted(package.rglob("*.py"))
        if "to_thread" in file.read_text() or "run_in_executor" in file.read_text()
    ] == []
