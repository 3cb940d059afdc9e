"""Kafka records into messages, or into what is wrong with them; nothing here raises for bad input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from streams.codec import Unreadable, decode
from streams.events import Message
from streams.registry import Registry

EPOCH = datetime(1970, 1, 1)
MAX_ID = 2**63 - 1


@dataclass(slots=True)
class Incoming:
    """One record with a usable id: `outbox_id` is the root's, `record_id` its own; `fault` says why there is no message."""

    record_id: int
    outbox_id: int
    offset: int
    key: str
    biz_type: str
    message: Message[Any] | None
    fault: Unreadable | None = None

    @property
    def resend(self) -> bool:
        """Whether this record is a second sending of an earlier outbox row."""
        return self.record_id != self.outbox_id


@dataclass(frozen=True, slots=True)
class Rejected:
    """One record that cannot be tied to an outbox row."""

    offset: int
    reason: str


def read(records: Sequence[Any], registry: Registry) -> tuple[list[Incoming], list[Rejected]]:
    """Each outbox row's first record in this run, in order, and what has no usable id.

    A restarted relay doubles rows within a run, and ON CONFLICT refuses the same key twice in one statement.
    """
    found: dict[int, Incoming] = {}
    rejected: list[Rejected] = []
    for record in records:
        headers = dict(record.headers)
        record_id, root = _number(headers.get("id")), headers.get("resend_of")
        outbox_id = record_id if root is None else _number(root)
        if record_id is None or outbox_id is None:
            name = "id" if record_id is None else "resend_of"
            rejected.append(Rejected(record.offset, f"header {name!r} is not an outbox id: {_brief(headers, name)}"))
        elif record_id not in found:
            found[record_id] = _incoming(record, headers, record_id, outbox_id, registry)
    return list(found.values()), rejected


def _incoming(
    record: Any, headers: dict[str, bytes | None], record_id: int, outbox_id: int, registry: Registry
) -> Incoming:
    biz_type = (headers.get("biz_type") or b"").decode("utf-8", "replace")
    created_at = EPOCH + timedelta(milliseconds=record.timestamp)
    try:
        key = record.key.decode()
        message = parse(record.value, biz_type, outbox_id, key, created_at, registry)
    except Unreadable as fault:
        return Incoming(record_id, outbox_id, record.offset, key, biz_type, None, fault)
    except (AttributeError, UnicodeDecodeError):
        fault = Unreadable("the record's key is not UTF-8 text", code="key")
        return Incoming(record_id, outbox_id, record.offset, "", biz_type, None, fault)
    return Incoming(record_id, outbox_id, record.offset, key, biz_type, message)


def parse(
    value: bytes | str | None, biz_type: str, outbox_id: int, key: str, created_at: datetime, registry: Registry
) -> Message[Any]:
    """The message of one outbox row; Unreadable when nobody could handle it."""
    agent = registry.agents.get(biz_type)
    if agent is None:
        known = ", ".join(sorted(registry.agents))
        raise Unreadable(f"unknown biz_type {biz_type[:80]!r}: expected one of {known}", code="biz_type")
    return Message(outbox_id, key, decode(value, agent.event.payload), created_at)


def _number(raw: bytes | None) -> int | None:
    """A positive bigint in plain ASCII digits, else None."""
    if raw is None or not 0 < len(raw) <= 19 or not raw.isdigit():
        return None
    number = int(raw)
    return number if 0 < number <= MAX_ID else None


def _brief(headers: dict[str, bytes | None], name: str) -> str:
    raw = headers.get(name)
    return "missing" if raw is None else repr(raw[:40])
