"""Where the messages are and how far behind relays are, as `streams status --json` prints it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streams.operate.relay_status import RelayStatus
from streams.operate.snapshot import MOST, Totals

CAP = MOST


def relays(statuses: Sequence[RelayStatus], running: Sequence[int | None]) -> list[dict[str, Any]]:
    """Each relay, led or not, others that share its work, then those that stand by.

    They are those that the database knows, or that run here.
    """
    shown, mode = [], "auto"
    leaders: set[int | None] = {None}
    for each in statuses:
        pid, mode = each.leader.pid if each.leader else None, each.mode or mode
        leaders.add(pid)
        lag = {"lag_rows": each.lag.rows, "lag_seconds": each.lag.seconds}
        shown.append({"pid": pid, "mode": mode, "leader": pid is not None, **lag})
        for other in each.sharing:
            if other.pid not in leaders:
                leaders.add(other.pid)
                shown.append(
                    {
                        "pid": other.pid,
                        "mode": mode,
                        "leader": True,
                        "lag_rows": None,
                        "lag_seconds": None,
                    }
                )
    waiting = dict.fromkeys(
        [*(member.pid for each in statuses for member in each.standbys), *running]
    )
    standby = {"mode": mode, "leader": False, "lag_rows": None, "lag_seconds": None}
    return shown + [{"pid": pid, **standby} for pid in waiting if pid not in leaders]


def messages(totals: Totals) -> dict[str, int]:
    """How many messages are where; pending and published say CAP + 1 when there are more."""
    return {
        "pending": totals.pending.number + totals.pending.more,
        "published": totals.published.number + totals.published.more,
        "retrying": totals.retrying,
        "parked": totals.parked,
        "replaying": totals.replaying,
        "held": totals.held,
        "dead": totals.dead,
    }
