"""Messages that another system's producer sends in envelopes: the row in `outbox_foreign` is all we have of them.

The conversation is the payload's key field, whatever key the record has; its order is that of the partition.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, LiteralString

import orjson

from streams import codec, envelope
from streams.codec import Unreadable
from streams.database import query
from streams.envelope import NoEnvelope
from streams.events import Message
from streams.registry import Registry
from streams.worker.failure.classify import storable
from streams.worker.run.decode import Incoming, Rejected, StoredPayload, milliseconds, unknown

# What differs from our own messages; every other statement is the same.
STATEMENTS: Mapping[str, LiteralString] = {
    "claim": "foreign_claim",
    "claim_all": "foreign_claim_all",
    "open_keys": "foreign_open_keys",
    "facts": "foreign_facts",
    "payloads": "foreign_payloads",
    "reclaim": "foreign_reclaim",
    "open": "foreign_open",
    "set_aside": "foreign_set_aside",
    "open_rows": "foreign_open_rows",
    "heads": "foreign_heads",
    "all_heads": "foreign_all_heads",
    "newest_dead": "foreign_newest_dead",
    "still_dead": "foreign_still_dead",
}

# The end of the year 9999: Kafka takes any number for a time, a database does not.
MOST_MS = 253_402_214_400_000
BIZ_TYPE_KEPT = 100


class Foreign:
    """One other system; several topics may be its."""

    settle: LiteralString | None = "foreign_settle"
    has_rows = False

    def __init__(self, registry: Registry, source: str) -> None:
        self._registry, self.source = registry, source

    def read(self, records: Iterable[Any]) -> tuple[list[Incoming], list[Rejected]]:
        """What is no envelope is rejected: nobody could say which message it was."""
        found: dict[int, Incoming] = {}
        rejected: list[Rejected] = []
        for record in records:
            try:
                outbox_id, biz_type, payload = envelope.opened(record.value)
            except NoEnvelope as reason:
                rejected.append(Rejected(record.partition, record.offset, str(reason)))
                continue
            if outbox_id not in found:
                kept = StoredPayload(payload, max(0, min(record.timestamp, MOST_MS)))
                one = Incoming(outbox_id, outbox_id, record.partition, record.offset, "", biz_type, None, kept=kept)
                self._parse(one, payload, kept.created_ms)
                if one.fault is not None:
                    one.key = self._key(one, payload, record.key)
                found[outbox_id] = one
        return list(found.values()), rejected

    def fill(self, one: Incoming, row: Sequence[Any], attempts: int) -> None:
        """The message as it was stored, an operator's edit included."""
        _, one.biz_type, one.key, payload, created_at = row
        one.kept, one.attempts = None, attempts
        self._parse(one, payload, milliseconds(created_at), attempts)

    def statement(self, name: str) -> LiteralString:
        """Those that write to `outbox_foreign`."""
        return query(STATEMENTS.get(name, name))

    def claim(self, some: Sequence[Incoming]) -> dict[str, Any]:
        """One JSON array, as the row has to say what the message is, and the ids again for what asks by index."""
        rows = [
            {
                "outbox_id": one.outbox_id,
                "partition": one.partition,
                "offset": one.offset,
                "key": one.key,
                "biz_type": _kept_type(one),
                "created_ms": one.kept.created_ms if one.kept else 0,
            }
            for one in some
        ]
        return {"messages": orjson.dumps(rows).decode(), "ids": [one.outbox_id for one in some]}

    def claim_each(self, some: Sequence[Incoming], known: bool) -> dict[str, Any]:
        """The same: no row says which record is its own."""
        return self.claim(some)

    def kept(self, one: Incoming) -> Mapping[str, Any]:
        """What the record says, unless it is stored already."""
        if one.kept is None:
            return {}
        return {"biz_type": _kept_type(one), "payload": one.kept.payload, "created_ms": one.kept.created_ms}

    def _parse(self, one: Incoming, payload: str | None, created_ms: int, attempts: int = 0) -> None:
        agent = self._registry.agents.get(one.biz_type)
        try:
            if agent is None:
                raise unknown(one.biz_type, self._registry)
            key, found = envelope.decoded(payload, agent.event)
        except Unreadable as fault:
            one.message, one.fault = None, fault
        else:
            one.key = key
            one.message = Message(one.outbox_id, key, found, created_ms, attempts, self.source)
            one.fault = None

    def _key(self, one: Incoming, payload: str, key: bytes | None) -> str:
        """The conversation of a message that cannot be read: what its payload says, else its record; '' when neither does."""
        agent = self._registry.agents.get(one.biz_type)
        named = envelope.conversation(payload, agent.event) if agent else None
        return named or codec.key_text((key or b"").decode("utf-8", "replace")) or ""


def _kept_type(one: Incoming) -> str:
    return storable(one.biz_type)[:BIZ_TYPE_KEPT]
