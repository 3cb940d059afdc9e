"""Kafka records into messages, or into what is wrong with them; nothing here raises for bad input."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec

from streams.codec import Unreadable, decode
from streams.events import Message
from streams.message_id import outbox_number
from streams.registry import Registry

EPOCH = datetime(1970, 1, 1)
UNKNOWN = "biz_type"  # the code of what waits for a worker that knows it
CREATE_TIME = 0  # the timestamp type of a record whose producer set its time; a broker's own is 1


class StoredPayload(msgspec.Struct):
    """What only the record says of a message: nobody else has it until it is stored."""

    payload: str
    created_ms: int


class Incoming(msgspec.Struct):
    """One record with a usable id: `outbox_id` is the root's, `record_id` its own; `fault` says why there is no message.

    `kept` is what to store when a message that has no outbox row is set aside.  Of an open message, `attempts` says how
    often it failed, and `waited` for how many seconds it has waited behind others or for its biz_type to be known.
    `time` is the record's own, in milliseconds, None when a broker set it.  It is `doubtful` when another record of the run
    has the same id but another key, time or root: one of them at most is the outbox row's.
    """

    record_id: int
    outbox_id: int
    partition: int
    offset: int
    key: str
    biz_type: str
    message: Message[Any] | None
    fault: Unreadable | None = None
    kept: StoredPayload | None = None
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


@dataclass(frozen=True, slots=True)
class Rejected:
    """One record that cannot be tied to an outbox row."""

    partition: int
    offset: int
    reason: str


def by_reason(rejected: Iterable[Rejected]) -> dict[tuple[int, str], list[int]]:
    """The offsets, ascending, of each partition and reason."""
    offsets: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
    for one in sorted(rejected, key=lambda one: one.offset):
        offsets[one.partition, one.reason].append(one.offset)
    return offsets


def read(records: Iterable[Any], registry: Registry) -> tuple[list[Incoming], list[Rejected]]:
    """Each outbox row's first record in this run, in order, and what has no usable id.

    A restarted relay doubles rows within a run, and ON CONFLICT refuses the same key twice in one statement.  Records that
    share an id and nothing else stay, each of them doubtful.
    """
    found: dict[int, Incoming] = {}
    others: dict[int, list[Incoming]] = {}
    rejected: list[Rejected] = []
    for record in records:
        raw_id, raw_type, root = _headers(record.headers)
        record_id = outbox_number(raw_id)
        outbox_id = record_id if root is None else outbox_number(root)
        if record_id is None or outbox_id is None:
            name, raw = ("id", raw_id) if record_id is None else ("resend_of", root)
            shown = "missing" if raw is None else repr(raw[:40])
            rejected.append(Rejected(record.partition, record.offset, f"header {name!r} is not an outbox id: {shown}"))
        elif record_id not in found:
            found[record_id] = _incoming(record, raw_type, record_id, outbox_id, registry)
        else:
            same_id = others.setdefault(record_id, [found[record_id]])
            another = _incoming(record, raw_type, record_id, outbox_id, registry)
            if all(_named(another) != _named(one) for one in same_id):
                same_id.append(another)
                for one in same_id:
                    one.doubtful = True
    more = [one for same_id in others.values() for one in same_id[1:]]
    if more:
        in_order = sorted([*found.values(), *more], key=lambda one: (one.partition, one.offset))
        return in_order, rejected
    return list(found.values()), rejected


def _named(one: Incoming) -> tuple[int, str, int | None]:
    """What tells two records of one id apart."""
    return one.outbox_id, one.key, one.time


def _headers(headers: Sequence[tuple[str, bytes | None]]) -> tuple[bytes | None, bytes | None, bytes | None]:
    """The values of id, biz_type and resend_of; the relay's four stand in a fixed order, anything else is looked up."""
    if len(headers) == 4:
        (first, raw_id), (second, raw_type), _, (fourth, root) = headers
        if first == "id" and second == "biz_type" and fourth == "resend_of":
            return raw_id, raw_type, root
    found = dict(headers)
    return found.get("id"), found.get("biz_type"), found.get("resend_of")


def _incoming(record: Any, raw_type: bytes | None, record_id: int, outbox_id: int, registry: Registry) -> Incoming:
    biz_type = (raw_type or b"").decode("utf-8", "replace")
    key = ""
    time = record.timestamp if record.timestamp_type == CREATE_TIME else None
    try:
        key = record.key.decode()
        if "\0" in key:
            raise _BrokenKey
        message = parse(record.value, biz_type, outbox_id, key, record.timestamp, registry)
    except Unreadable as fault:
        return Incoming(record_id, outbox_id, record.partition, record.offset, key, biz_type, None, fault, time=time)
    except (AttributeError, UnicodeDecodeError, _BrokenKey):
        broken = Unreadable("the record's key is not UTF-8 text without NUL", code="key")
        return Incoming(record_id, outbox_id, record.partition, record.offset, "", biz_type, None, broken, time=time)
    return Incoming(record_id, outbox_id, record.partition, record.offset, key, biz_type, message, time=time)


class _BrokenKey(ValueError):
    pass


def parse(
    value: bytes | str | None,
    biz_type: str,
    outbox_id: int,
    key: str,
    created_ms: int,
    registry: Registry,
    attempts: int = 0,
) -> Message[Any]:
    """The message of one outbox row; Unreadable when nobody could handle it."""
    agent = registry.agents.get(biz_type)
    if agent is None:
        raise unknown(biz_type, registry)
    return Message(outbox_id, key, decode(value, agent.event.payload), created_ms, attempts)


def unknown(biz_type: str, registry: Registry) -> Unreadable:
    """Nobody here handles it."""
    known = ", ".join(sorted(registry.agents))
    return Unreadable(f"unknown biz_type {biz_type[:80]!r}: expected one of {known}", code=UNKNOWN)


def milliseconds(created_at: datetime) -> int:
    """An outbox row's created_at as a record's timestamp."""
    return (created_at - EPOCH) // timedelta(milliseconds=1)
