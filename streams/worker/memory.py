"""A worker's memory: large buffers are given back, and circles are looked for rarely."""

from __future__ import annotations

import ctypes
import gc

M_MMAP_THRESHOLD = -3  # glibc's malloc.h
LARGE = 256 * 1024  # bytes; a run's JSON text is a few times as much


def return_large_buffers() -> None:
    """Keep glibc from raising the size from which it maps buffers by themselves.

    Nothing happens with another libc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)


def spare_the_collector() -> None:
    """Forget what is loaded by now, and look for circles rarely.

    Records, rows and messages have none.
    """
    gc.freeze()
    gc.set_threshold(100_000)
