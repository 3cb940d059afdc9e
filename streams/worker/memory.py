"""Large buffers go back to the system when they are freed: a worker's memory is what it holds, not the most it ever held."""

from __future__ import annotations

import ctypes

M_MMAP_THRESHOLD = -3  # glibc's malloc.h
LARGE = 256 * 1024  # bytes; a run's JSON text is a few times as much


def return_large_buffers() -> None:
    """Keep glibc from raising the size from which it maps buffers by themselves; nothing happens with another libc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)
