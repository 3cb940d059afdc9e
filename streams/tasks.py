"""Several things at once, until the first of them ends it.

    async with ended_by(stopped(), changed(), confirming()) as ending:
        async for rows in source:           # cancelled when one of the three returns or raises
            await publisher.publish(rows)
    ending.outcome                          # what it returned; None when the block ended by itself

A block is cancelled as `asyncio.timeout` does it: the request is taken back afterwards, and one
that somebody else made goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


class ended_by(Generic[T]):
    """Beside a block: the first of these that returns a value ends the block and the others.

    That value is then `outcome`. One that returns None ends nothing. One that fails ends all, and
    what it raised is raised.
    """

    def __init__(self, *beside: Coroutine[Any, Any, T | None]) -> None:
        self._beside = beside
        self._tasks: list[asyncio.Task[T | None]] = []
        self._failure: BaseException | None = None
        self._ended = self._over = False
        self.outcome: T | None = None

    async def __aenter__(self) -> ended_by[T]:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._asked_before = task, task.cancelling()
        for coroutine in self._beside:
            beside = asyncio.ensure_future(coroutine)
            beside.add_done_callback(self._done)
            self._tasks.append(beside)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._over = True
        if self._ended:
            if kind is None or not issubclass(kind, asyncio.CancelledError):
                # The request came too late for the block: it is still to be delivered.
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0)
            others_asked = self._task.uncancel() > self._asked_before
        else:
            others_asked = False
        await self._cancel_others()
        if self._failure is not None:
            raise self._failure
        if others_asked:
            raise asyncio.CancelledError
        return self._ended and kind is not None and issubclass(kind, asyncio.CancelledError)

    def _done(self, task: asyncio.Task[T | None]) -> None:
        if self._over or self._ended or task.cancelled():
            return
        self._failure = task.exception()
        self.outcome = None if self._failure is not None else task.result()
        if self._failure is not None or self.outcome is not None:
            self._ended = True
            self._task.cancel()

    async def _cancel_others(self) -> None:
        """Cancel what is left and wait for its end, also when this is cancelled meanwhile."""
        asked: asyncio.CancelledError | None = None
        for task in self._tasks:
            task.cancel()
        while pending := [task for task in self._tasks if not task.done()]:
            try:
                await asyncio.wait(pending)
            except asyncio.CancelledError as error:
                asked = error
        for task in self._tasks:
            if not task.cancelled():
                task.exception()  # seen: what failed first is what counts
        if asked is not None:
            raise asked


async def first_to_end(*work: Coroutine[Any, Any, T | None]) -> T:
    """What the first of these returns that is not None; the others are cancelled.

    Raises what the first one that fails raises.
    """
    async with ended_by(*work) as ending:
        await asyncio.Future()
    assert ending.outcome is not None
    return ending.outcome


async def apart(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """What this blocking call returns or raises, from a thread that nobody has to wait for.

    Who is cancelled leaves it behind, and a process that ends does too: `asyncio.to_thread` keeps
    the process until the last call has returned, so one that Kafka leaves without an answer would
    keep a relay that was told to stop.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)  # type: ignore[arg-type]  # None only where T has it

    def run() -> None:
        result, failure = None, None
        try:
            result = work(*arguments, **options)
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # nobody is left: the loop is closed
            loop.call_soon_threadsafe(settle, result, failure)

    name = f"apart {getattr(work, '__name__', '')}"
    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), name=name, daemon=True).start()
    return await answer
