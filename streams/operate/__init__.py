"""The dead-letter desk: look at dead messages, replay or discard them; every act is noted.

Functions take a synchronous connection that is in no transaction; from async code, `await
connection.run_sync(...)`.
"""

from streams.operate.conversations import NotHeld, Waiting, release, waiting
from streams.operate.dead_letters import Group, Letter, groups, letters, payload
from streams.operate.replay import (
    MOST_REPLAYS,
    Operator,
    ReplayLimitReached,
    Step,
    compare,
    discard,
    edit,
    plan,
    replay,
)
from streams.operate.selection import Choice, NotDead

__all__ = [
    "MOST_REPLAYS",
    "Choice",
    "Group",
    "Letter",
    "NotDead",
    "NotHeld",
    "Operator",
    "ReplayLimitReached",
    "Step",
    "Waiting",
    "compare",
    "discard",
    "edit",
    "groups",
    "letters",
    "payload",
    "plan",
    "release",
    "replay",
    "waiting",
]
