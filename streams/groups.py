"""`TaskGroup` leaves its caller as it was: whoever catches its failure goes on, on every Python.

Before Python 3.13 a group whose child fails while the group waits for it cancels its own task and
never takes that back:

    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fails())
    except* OSError:
        ...                          # current_task().cancelling() is 1 from here on
    async with asyncio.timeout(5):   # before 3.11.4: its TimeoutError is a CancelledError,
        ...                          # which ends the process

So this group is the only one used here, and a test looks for others.
"""

from __future__ import annotations

import asyncio
import sys
from types import TracebackType

if sys.version_info >= (3, 13):
    TaskGroup = asyncio.TaskGroup
else:

    class TaskGroup(asyncio.TaskGroup):
        """A group that takes back what it asked of its own task, not what others asked."""

        async def __aexit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            trace: TracebackType | None,
        ) -> None:
            """Wait for the tasks; raises what a group of Python 3.13 raises."""
            known = self._asked_its_task()
            try:
                await super().__aexit__(kind, error, trace)
            except BaseExceptionGroup:
                self._take_back(known)
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    # Somebody else's request is still to be seen: the group's own error went before
                    # it.
                    task.uncancel()
                    task.cancel()
                raise
            except (
                BaseException
            ):  # cancelled from outside too: our own request is taken back all the same
                self._take_back(known)
                raise

        def _take_back(self, known: bool) -> None:
            task = asyncio.current_task()
            if task is not None and self._asked_its_task() and not known:
                task.uncancel()

        def _asked_its_task(self) -> bool:
            asked: bool = vars(self)["_parent_cancel_requested"]
            return asked
