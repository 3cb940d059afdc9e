"""What one delivered record means, given what PostgreSQL knows of its message: the rules of the design, without any I/O."""

from __future__ import annotations

import math
from enum import Enum, auto
from typing import NamedTuple

from streams.worker.decode import UNKNOWN

TERMINAL = ("consumed", "dead", "discarded")


class Fact(NamedTuple):
    """What is known of a message: `known` if its root has an outbox row; `first` in line of its conversation.

    `code` is that of its last error, `since` for how many seconds its state is as it is.
    """

    known: bool
    status: str | None = None
    source_id: int | None = None
    attempts: int = 0
    due: bool = False
    first: bool = False
    code: str | None = None
    since: float = 0.0


class Decision(Enum):
    """What to do with a record."""

    REJECT = auto()  # tied to no outbox row
    SKIP = auto()  # has its fate, or waits for its time
    NEW = auto()  # claim it
    PARK = auto()  # new, behind an open message of its conversation
    AGAIN = auto()  # open, and its turn
    QUEUE = auto()  # a replay whose turn has not come: it waits parked


def waited(status: str | None, due: bool, code: str | None, since: float) -> float:
    """How much of its patience a message whose biz_type nobody knows has used up: what waited parked has waited too."""
    if status == "retrying" and code == UNKNOWN:
        return math.inf if due else 0.0
    return since if status == "parked" else 0.0


def decide(record_id: int, outbox_id: int, fact: Fact, *, blocked: bool) -> Decision:
    """The decision on a record of the message `outbox_id`; `blocked` while its conversation has an open message.

    A message being replayed moves only by the record of that replay, so that a late original cannot undo an edit.
    """
    if not fact.known:
        return Decision.REJECT
    match fact.status:
        case None:
            return Decision.PARK if blocked else Decision.NEW
        case "retrying":
            return Decision.AGAIN if fact.due and fact.first else Decision.SKIP
        case "parked":
            return Decision.AGAIN if fact.first else Decision.SKIP
        case "replaying" if record_id == fact.source_id:
            return Decision.AGAIN if fact.first else Decision.QUEUE
    return Decision.SKIP
