"""Kafka records into messages, or into what is wrong with them.

Nothing here raises for bad input.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from operator import attrgetter
from types import MappingProxyType
from typing import Any

from streams import codec
from streams.codec import Unreadable, decode
from streams.events import EventType, Message
from streams.message_id import outbox_number
from streams.registry import Registry
from streams.worker.delivery import UNKNOWN, Delivery, Rejected
from streams.worker.failure.classify import describe, name_of

NOBODY: Mapping[int, Exception] = MappingProxyType({})
EPOCH = datetime(1970, 1, 1)
CREATE_TIME = 0  # the timestamp type of a record whose producer set its time; a broker's own is 1
LONGEST = 100  # bytes of a biz_type that anybody can register: nothing longer is remembered


def runs_code(registry: Registry) -> bool:
    """Whether reading a payload of these agents runs somebody's own code."""
    payloads: set[Any] = {agent.event.payload for agent in registry.agents.values()}
    return any(map(codec.runs_code, payloads))


def ids(records: Iterable[Any]) -> list[tuple[int, int]]:
    """(outbox id, offset) of the records that name a message."""
    named = []
    for record in records:
        raw_id, _, root = _headers(record.headers)
        outbox_id = outbox_number(raw_id if root is None else root)
        if outbox_id is not None:
            named.append((outbox_id, record.offset))
    return named


def read(
    records: Iterable[Any], registry: Registry, condemned: Mapping[int, Exception] = NOBODY
) -> tuple[list[Delivery], list[Rejected]]:
    """Each outbox row's first record in this run, in order, and what has no usable id.

    A restarted relay doubles rows within a run, and ON CONFLICT refuses the same key twice in one
    statement. Records that share an id and nothing else stay, each of them doubtful.
    """
    deliveries: dict[int, Delivery] = {}
    others: dict[int, list[Delivery]] = {}
    rejected: list[Rejected] = []
    for record in records:
        raw_id, raw_type, root = _headers(record.headers)
        record_id = outbox_number(raw_id)
        outbox_id = record_id if root is None else outbox_number(root)
        if record_id is None or outbox_id is None:
            name, raw = ("id", raw_id) if record_id is None else ("resend_of", root)
            shown = "missing" if raw is None else repr(raw[:40])
            reason = f"header {name!r} is not an outbox id: {shown}"
            rejected.append(Rejected(record.partition, record.offset, reason))
        elif record_id not in deliveries:
            deliveries[record_id] = _delivery(
                record, raw_type, record_id, outbox_id, registry, condemned.get(outbox_id)
            )
        else:
            same_id = others.setdefault(record_id, [deliveries[record_id]])
            another = _delivery(
                record, raw_type, record_id, outbox_id, registry, condemned.get(outbox_id)
            )
            if all(_identity(another) != _identity(delivery) for delivery in same_id):
                same_id.append(another)
                for delivery in same_id:
                    delivery.doubtful = True
    more = [delivery for same_id in others.values() for delivery in same_id[1:]]
    if more:
        in_order = sorted([*deliveries.values(), *more], key=attrgetter("partition", "offset"))
        return in_order, rejected
    return list(deliveries.values()), rejected


def _identity(delivery: Delivery) -> tuple[int, str, int | None]:
    """What tells two records of one id apart."""
    return delivery.outbox_id, delivery.key, delivery.time


def _headers(
    headers: Sequence[tuple[str, bytes | None]],
) -> tuple[bytes | None, bytes | None, bytes | None]:
    """The values of id, biz_type and resend_of.

    The relay's four stand in a fixed order, anything else is looked up.
    """
    if len(headers) == 4:
        (first, raw_id), (second, raw_type), _, (fourth, root) = headers
        if first == "id" and second == "biz_type" and fourth == "resend_of":
            return raw_id, raw_type, root
    values = dict(headers)
    return values.get("id"), values.get("biz_type"), values.get("resend_of")


def _delivery(
    record: Any,
    raw_type: bytes | None,
    record_id: int,
    outbox_id: int,
    registry: Registry,
    condemned: Exception | None,
) -> Delivery:
    short = raw_type is None or len(raw_type) <= LONGEST
    biz_type = _remembered_text(raw_type) if short else _text(raw_type)
    partition, offset, key = record.partition, record.offset, ""
    time = record.timestamp if record.timestamp_type == CREATE_TIME else None
    try:
        key = record.key.decode()
        if "\0" in key:
            raise _BrokenKey
        if condemned is not None:
            raise unread(condemned)
        message = parse(record.value, biz_type, outbox_id, key, record.timestamp, registry)
    except Unreadable as fault:
        return Delivery(
            record_id, outbox_id, partition, offset, key, biz_type, None, fault, time=time
        )
    except (AttributeError, UnicodeDecodeError, _BrokenKey):
        broken = Unreadable("the record's key is not UTF-8 text without NUL", code="key")
        return Delivery(
            record_id, outbox_id, partition, offset, "", biz_type, None, broken, time=time
        )
    return Delivery(record_id, outbox_id, partition, offset, key, biz_type, message, time=time)


def _text(raw_type: bytes | None) -> str:
    """The biz_type that a header names."""
    return (raw_type or b"").decode("utf-8", "replace")


# A topic has few: each is made text once.
_remembered_text = lru_cache(maxsize=256)(_text)


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
    try:
        payload = decode(value, agent.event.payload)
    except (Exception, asyncio.CancelledError):
        raise
    except BaseException as error:
        raise let_out(agent.event, error) from None
    return Message(outbox_id, key, payload, created_ms, attempts)


def unread(condemned: Exception) -> Unreadable:
    """Its process died of it too often for one more try."""
    code, reason = describe(condemned)
    return Unreadable(reason, code=code)


def let_out(event: EventType, error: BaseException) -> Unreadable:
    """A payload's own code let something out that is no error, and would end its whole topic."""
    name = name_of(error)
    return Unreadable(f"{event.payload.__name__} cannot be made of it: {name}", code=name)


def unknown(biz_type: str, registry: Registry) -> Unreadable:
    """Nobody here handles it."""
    known = ", ".join(sorted(registry.agents))
    return Unreadable(f"unknown biz_type {biz_type[:80]!r}: expected one of {known}", code=UNKNOWN)


def milliseconds(created_at: datetime) -> int:
    """An outbox row's created_at as a record's timestamp."""
    return (created_at - EPOCH) // timedelta(milliseconds=1)
