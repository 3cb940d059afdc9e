"""Several things at once, until the first of them ends it."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from typing import Any

from streams.groups import TaskGroup


class Done(Exception):
    """Raised by one of them: all may end, in order."""


async def together(*work: Coroutine[Any, Any, Any]) -> None:
    """All of this at once; returns when one raises Done, else raises the first thing that went wrong."""
    try:
        async with TaskGroup() as tasks:
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
