"""What a run delivers: messages, each with what its record says, and records that are none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, cast

import msgspec

from streams.codec import Unreadable
from streams.events import Message

UNKNOWN = "biz_type"  # the code of what waits for a worker that knows it


class StoredPayload(msgspec.Struct):
    """What only the record says of a message: nobody else has it until it is stored."""

    payload: str
    created_ms: int


class Delivery(msgspec.Struct, eq=False):
    """One record with a usable id, and the message that it delivers.

    It is known by itself, not by its id.

    record_id    the id of the record's own outbox row
    outbox_id    that of the message: the root's
    message      None where nobody could handle it
    fault        why there is no message
    to_store     what to store when a message that has no outbox row is set aside
    time         the record's own, in milliseconds; None when a broker set it
    doubtful     another record of the run has the same id but another key, time or root: one of
                 them at most is the outbox row's
    attempts     how often an open message failed
    waited       for how many seconds it has waited behind others or for its biz_type to be known
    """

    record_id: int
    outbox_id: int
    partition: int
    offset: int
    key: str
    biz_type: str
    message: Message[Any] | None
    fault: Unreadable | None = None
    to_store: StoredPayload | None = None
    time: int | None = None
    doubtful: bool = False
    attempts: int = 0
    waited: float = 0.0

    @property
    def unknown(self) -> bool:
        """Whether nobody here knows its biz_type: another worker may."""
        return self.fault is not None and self.fault.code == UNKNOWN

    @property
    def resend(self) -> bool:
        """Whether this record is a second sending of an earlier outbox row."""
        return self.record_id != self.outbox_id


def unclear_of(deliveries: Iterable[Delivery]) -> list[Delivery]:
    """Those that are more than the first record of a message that can be read."""
    # Each record of each run goes through here: a property would cost more than what it asks.
    return [
        delivery
        for delivery in deliveries
        if delivery.fault is not None
        or delivery.doubtful
        or delivery.record_id != delivery.outbox_id
    ]


def messages_of(deliveries: Iterable[Delivery]) -> list[Message[Any]]:
    """The messages of deliveries that can all be read."""
    return cast("list[Message[Any]]", [delivery.message for delivery in deliveries])


@dataclass(frozen=True, slots=True)
class Rejected:
    """One record that cannot be tied to an outbox row."""

    partition: int
    offset: int
    reason: str


def by_reason(rejected: Iterable[Rejected]) -> dict[tuple[int, str], Sequence[int]]:
    """The offsets, ascending, of each partition and reason."""
    offsets: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
    for record in sorted(rejected, key=attrgetter("offset")):
        offsets[record.partition, record.reason].append(record.offset)
    return dict(offsets)
