"""How long to wait before trying again: doubling, bounded, and never two relays in step."""

from __future__ import annotations

import random

FIRST_SECONDS = 0.2


def delay(attempt: int, limit: float) -> float:
    """Seconds to wait before attempt number *attempt*, with jitter.

    Attempt 1 is the first retry. It is never more than `limit`.
    """
    return min(limit, FIRST_SECONDS * 2.0 ** min(attempt, 30)) * random.uniform(0.5, 1.0)
