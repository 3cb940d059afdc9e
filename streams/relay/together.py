"""Several things at once, until the first of them ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any


class Done(Exception):
    """Raised by one of them: all may end, in order."""


async def together(*work: Coroutine[Any, Any, Any]) -> None:
    """All of this at once; returns when one raises Done, else raises the first thing that went wrong.

    In a task of its own.  Before Python 3.13 a group whose task fails while the group is waited for leaves a request to
    cancel behind in the task around it.  Before 3.11.3 that is taken, in every asyncio.timeout that comes after, for
    somebody's wish to cancel: what was an outage ended the process.
    """
    await asyncio.ensure_future(_together(work))


async def _together(work: Iterable[Coroutine[Any, Any, Any]]) -> None:
    try:
        async with asyncio.TaskGroup() as tasks:
            for each in work:
                tasks.create_task(each)
    except BaseExceptionGroup as group:
        errors = [error for error in _leaves(group) if not isinstance(error, Done)]
        if errors:
            raise errors[0] from None


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterable[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
