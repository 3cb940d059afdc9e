"""The dead-letter desk: look at dead messages, replay or discard them, every act written down in `outbox_actions`.

Functions take a synchronous connection that is in no transaction; from async code, `await connection.run_sync(...)`.
"""

from streams.desk.acts import MOST_REPLAYS, Circle, Operator, Step, discard, edit, plan, replay
from streams.desk.choice import Choice, NotDead
from streams.desk.conversations import NotHeld, Waiting, release, waiting
from streams.desk.letters import Group, Letter, groups, letters, payload

__all__ = [
    "MOST_REPLAYS",
    "Choice",
    "Circle",
    "Group",
    "Letter",
    "NotDead",
    "NotHeld",
    "Operator",
    "Step",
    "Waiting",
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
