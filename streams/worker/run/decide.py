"""What delivered records mean, given what PostgreSQL knows of their messages; nothing here asks it.

no outbox row, or another message's      rejected; skipped where the message has its fate
no fate, its conversation waits          parked behind it
no fate                                  new: claimed
retrying, due and first in line          again
parked and first in line                 again
replaying, by the replay's own record    again when first in line, else queued
anything else                            skipped: it has its fate, or waits for its time
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple, cast

from streams.worker.delivery import UNKNOWN, Delivery, Rejected
from streams.worker.failure.classify import WrongTimes

TERMINAL = ("consumed", "dead", "discarded")


class Fact(NamedTuple):
    """What is known of a message: `known` if its root has an outbox row.

    `first` when it is first in line of its conversation.

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


class Named(NamedTuple):
    """An outbox row as what tells its record from any other.

    `created_ms` is None where no record can carry it.
    """

    key: str
    created_ms: int | None
    resend_of: int | None
    topic: str


NO_ROW = "no outbox row has this id"
OTHER_KEY = "the outbox row of this id has another key"
OTHER_TIME = "the outbox row of this id was written at another time"
OTHER_ROOT = "the outbox row of this id is of another message"
OTHER_TOPIC = "the outbox row of this id is of another topic"


def stranger(record: Named, root: int, row: Named, row_id: int) -> str | None:
    """Why a record of the message `root` is not this row's; None when it is.

    Ids are drawn again after a restore, so that one alone names no message.
    """
    if record.topic != row.topic:
        return OTHER_TOPIC
    if record.key != row.key:
        return OTHER_KEY
    if root != (row.resend_of or row_id):
        return OTHER_ROOT
    # A time that a broker set is nobody's.
    same = record.created_ms is not None and record.created_ms == row.created_ms
    return None if same else OTHER_TIME


def check_times(off: Sequence[tuple[int | None, int | None]], *, another_life: bool) -> None:
    """WrongTimes when a setting is wrong, by the times of records (record, row).

    These records agree with their rows in all else. Such a setting gives every record a time after
    its row was written. So one that is older is of another life, and so are all of them when
    others of the run are (`another_life`).
    """
    if any(time is None for time, _ in off):
        raise WrongTimes(
            "the broker set the times of records: expected message.timestamp.type=CreateTime of the"
            " topic"
        )
    later = sum((time or 0) > (created_ms or 0) for time, created_ms in off)
    if later > 1 and not another_life:
        raise WrongTimes(
            f"{later} records carry later times than their outbox rows: expected created_at"
            " (a mirror, or a connector without table.field.event.timestamp)"
        )


class Range(NamedTuple):
    """Rejected records of one partition that have one reason.

    `records` of those from `first` to `last` were rejected.
    """

    partition: int
    first: int
    last: int
    records: int
    reason: str


NEAR = 1000  # offsets between two ranges that become one


def rejected_range(
    partition: int, reason: str, offsets: Sequence[int], before: Range | None
) -> Range | None:
    """The range to note for these offsets, in order, given the one that begins last before them.

    None when it has them all.

    A record that comes twice is counted once.
    """
    if before is None or offsets[0] > before.last + NEAR:
        return Range(partition, offsets[0], offsets[-1], len(offsets), reason)
    new = [offset for offset in offsets if offset > before.last]
    if not new:
        return None
    return before._replace(last=new[-1], records=before.records + len(new))


class Decision(Enum):
    """What to do with a record."""

    REJECT = auto()  # tied to no outbox row
    SKIP = auto()  # has its fate, or waits for its time
    NEW = auto()  # claim it
    PARK = auto()  # new, behind an open message of its conversation
    AGAIN = auto()  # open, and its turn
    QUEUE = auto()  # a replay whose turn has not come: it waits parked


def waited(status: str | None, due: bool, code: str | None, since: float) -> float:
    """How much of its patience a message of an unknown biz_type has used up.

    What waited parked has waited too.
    """
    if status == "retrying" and code == UNKNOWN:
        return math.inf if due else 0.0
    return since if status == "parked" else 0.0


def decision_on(record_id: int, outbox_id: int, fact: Fact, *, blocked: bool) -> Decision:
    """The decision on one record of the message `outbox_id`.

    `blocked` while its conversation has an open message.

    A message being replayed moves only by the record of that replay, so that a late original cannot
    undo an edit.
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


@dataclass(frozen=True, slots=True)
class Decisions:
    """What to do with deliveries that are not simply new; what is in none of the lists is skipped.

    new         without a fate: to be claimed
    parked      without a fate, behind an open message of their conversation
    again       open, and their turn, each with the status that it has
    queued      replays whose turn has not come
    rejected    records of no message
    """

    new: list[Delivery] = field(default_factory=list)
    parked: list[Delivery] = field(default_factory=list)
    again: list[tuple[Delivery, str]] = field(default_factory=list)
    queued: list[Delivery] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)


def decide(
    deliveries: Iterable[Delivery], facts: Mapping[int, Fact], blocked: Collection[str]
) -> Decisions:
    """The decision on each of these deliveries.

    It is made by the facts of its message and the conversations that wait.
    """
    decisions = Decisions()
    for delivery in deliveries:
        fact = facts[delivery.outbox_id]
        match decision_on(
            delivery.record_id, delivery.outbox_id, fact, blocked=delivery.key in blocked
        ):
            case Decision.NEW:
                decisions.new.append(delivery)
            case Decision.PARK:
                decisions.parked.append(delivery)
            case Decision.AGAIN:
                decisions.again.append((delivery, cast("str", fact.status)))
            case Decision.QUEUE:
                decisions.queued.append(delivery)
            case Decision.REJECT:
                decisions.rejected.append(Rejected(delivery.partition, delivery.offset, NO_ROW))
    return decisions


def independent_of(
    unclear: Sequence[Delivery], deliveries: Sequence[Delivery]
) -> Sequence[Delivery]:
    """Those of conversations without an unclear delivery.

    They are claimed in any order to the unclear ones.
    """
    if not unclear:
        return deliveries
    keys = {delivery.key for delivery in unclear}
    # A record without a key may be of any conversation.
    return [] if "" in keys else [delivery for delivery in deliveries if delivery.key not in keys]


def may_move(delivery: Delivery, fact: Fact) -> bool:
    """Whether the outbox rows count, not the record.

    It is broken or sent again, or its message is open.
    """
    if not fact.known or fact.status in TERMINAL:
        return False
    return delivery.fault is not None or delivery.resend or fact.status is not None
