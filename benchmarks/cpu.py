"""CPU seconds of whole programs.

On a machine that others use too they say more than the clock on the wall.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import psutil


def cpu(pids: Iterable[int | None]) -> float:
    """CPU seconds that these processes, and all that ever were their children, have used."""
    seconds = 0.0
    for pid in pids:
        if pid is not None:
            process = psutil.Process(pid)
            for each in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    used = each.cpu_times()
                    seconds += used.user + used.system
            ended = process.cpu_times()
            seconds += ended.children_user + ended.children_system
    return seconds
