"""Time in which the event loop, or the interpreter, stood still: whose it is, and who notices."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from streams.worker.database import response_deadline as deadlines
from streams.worker.failure import handler_call

HANGS = """
import re, threading, time
from types import SimpleNamespace
from streams.worker.health import WorkerHealth

health = object.__new__(WorkerHealth)
health._app, health._turns, health._patience = SimpleNamespace(should_stop=False), 0, 1.0
threading.Thread(target=health._watch_loop, daemon=True).start()
time.sleep(0.1)
def keeps_the_interpreter():
    re.match("(a+)+$", "a" * 60 + "b")
keeps_the_interpreter()
"""


async def wait(task: asyncio.Future[None], seconds: float) -> None:
    """Wait as a call of a handler is waited for."""
    patience = handler_call.Patience(seconds)
    while not task.done() and (part := patience.part()):
        await asyncio.wait([task], timeout=part)


async def test_a_call_is_given_the_time_for_which_another_one_blocked_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its answers had come, and lay there unread: innocent messages were charged for it."""
    monkeypatch.setattr(handler_call, "SLICE", 0.05)

    async def two_statements() -> None:
        await asyncio.sleep(0.02)
        await asyncio.sleep(0.02)

    task = asyncio.ensure_future(two_statements())
    asyncio.get_running_loop().call_soon(time.sleep, 0.5)
    await wait(task, 0.2)
    assert task.done()


async def test_a_call_that_takes_its_time_itself_gets_no_more_than_that() -> None:
    task = asyncio.ensure_future(asyncio.sleep(60))
    began = time.monotonic()
    await wait(task, 0.1)
    assert not task.done()
    assert time.monotonic() - began < 5
    task.cancel()


@pytest.mark.parametrize("blocked", [True, False])
async def test_a_server_is_not_silent_while_nobody_listens(
    monkeypatch: pytest.MonkeyPatch, blocked: bool
) -> None:
    given_up = asyncio.Event()
    monkeypatch.setattr(deadlines, "LATE", 0.1)
    monkeypatch.setattr(deadlines, "_hang_up", lambda driver, seconds: given_up.set())
    driver: Any = None
    with deadlines.response_deadline(driver, 0.1):
        if blocked:
            asyncio.get_running_loop().call_soon(time.sleep, 0.5)
            await asyncio.sleep(0)
            await asyncio.sleep(0.01)
            assert not given_up.is_set()
        async with asyncio.timeout(10):
            await given_up.wait()


def test_whoever_keeps_the_interpreter_to_himself_is_ended_and_named() -> None:
    """The watchdog is a thread of Python's: it was kept out, and the worker stood for ever."""
    ended = subprocess.run(
        [sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == -signal.SIGVTALRM
    assert "in keeps_the_interpreter" in ended.stderr
