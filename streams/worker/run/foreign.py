"""Messages of another system's envelopes: the row in `outbox_foreign` is all we have of them.

The conversation is the payload's key field, whatever key the record has; its order is that of the
partition. Of what cannot be read, and of a biz_type that nobody here knows yet, it is the record's
key. A message that is stored keeps the conversation that it is stored under, whatever its payload
says to whoever reads it later: by that one it is found.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, LiteralString

import orjson

from streams import codec, envelope
from streams.codec import Unreadable
from streams.database import query
from streams.envelope import NoEnvelope
from streams.events import Message
from streams.registry import Registry
from streams.worker.delivery import Delivery, Rejected, StoredPayload
from streams.worker.failure.classify import storable
from streams.worker.run.decode import NOBODY, let_out, runs_code, unknown, unread
from streams.worker.run.origin import time_of

# What differs from our own messages; every other statement is the same.
STATEMENTS: Mapping[str, LiteralString] = {
    "claim": "foreign_claim",
    "claim_all": "foreign_claim_all",
    "probe": "foreign_probe",
    "open_keys": "foreign_open_keys",
    "facts": "foreign_facts",
    "payloads": "foreign_payloads",
    "reclaim": "foreign_reclaim",
    "open": "foreign_open",
    "set_aside": "foreign_set_aside",
    "opened_before": "foreign_opened_before",
    "open_line": "foreign_open_line",
    "open_rows": "foreign_open_rows",
    "heads": "foreign_heads",
    "all_heads": "foreign_all_heads",
    "biz_types_of": "foreign_biz_types_of",
    "newest_dead": "foreign_newest_dead",
    "still_dead": "foreign_still_dead",
}

# The end of the year 9999: Kafka takes any number for a time, a database does not.
MOST_MS = 253_402_214_400_000
BIZ_TYPE_STORED = 100


class Foreign:
    """One other system; several topics may be its."""

    settle: LiteralString | None = "foreign_settle"
    has_rows = False

    def __init__(self, registry: Registry, source: str) -> None:
        self._registry, self.source = registry, source

    @property
    def runs_code(self) -> bool:
        """Whether reading a payload runs somebody's own code."""
        return runs_code(self._registry)

    def ids(self, records: Iterable[Any]) -> list[tuple[int, int]]:
        """As the envelopes name them."""
        named = []
        for record in records:
            with suppress(NoEnvelope):
                named.append((envelope.opened(record.value)[0], record.offset))
        return named

    def read(
        self, records: Iterable[Any], condemned: Mapping[int, Exception] = NOBODY
    ) -> tuple[list[Delivery], list[Rejected]]:
        """What is no envelope is rejected: nobody could say which message it was."""
        deliveries: dict[int, Delivery] = {}
        rejected: list[Rejected] = []
        for record in records:
            try:
                outbox_id, biz_type, payload = envelope.opened(record.value)
            except NoEnvelope as reason:
                rejected.append(Rejected(record.partition, record.offset, str(reason)))
                continue
            if outbox_id not in deliveries:
                where = record.partition, record.offset
                delivery = Delivery(outbox_id, outbox_id, *where, "", biz_type, None)
                created_ms = max(0, min(record.timestamp, MOST_MS))
                delivery.to_store = StoredPayload(payload, created_ms)
                if (death := condemned.get(outbox_id)) is not None:
                    delivery.fault = unread(death)
                else:
                    self._parse(delivery, payload, created_ms)
                message = delivery.message
                named = self._key(delivery, payload, record.key) if message is None else message.key
                delivery.key = named
                deliveries[outbox_id] = delivery
        return list(deliveries.values()), rejected

    def load_stored(self, delivery: Delivery, row: Sequence[Any], attempts: int) -> None:
        """Make the message what was stored of it, an operator's edit included.

        It stays in the conversation that it is stored under; its handler gets the payload's key.
        """
        _, biz_type, delivery.key, payload, created_ms = row
        delivery.biz_type = biz_type or ""
        delivery.to_store, delivery.attempts = None, attempts
        self._parse(delivery, payload, created_ms, attempts)

    def statement(self, name: str) -> LiteralString:
        """The named query, or its twin that writes to `outbox_foreign`."""
        return query(STATEMENTS.get(name, name))

    def claim(self, deliveries: Sequence[Delivery]) -> dict[str, Any]:
        """The parameters that claim these messages: one JSON array, and their ids.

        The row has to say what the message is, hence the array; the ids are for what asks by index.
        """
        rows = [
            {
                "outbox_id": delivery.outbox_id,
                "partition": delivery.partition,
                "offset": delivery.offset,
                "key": delivery.key,
                "biz_type": _stored_type(delivery),
                "created_ms": delivery.to_store.created_ms if delivery.to_store else 0,
            }
            for delivery in deliveries
        ]
        ids = [delivery.outbox_id for delivery in deliveries]
        return {"messages": orjson.dumps(rows).decode(), "ids": ids}

    def claim_each(self, deliveries: Sequence[Delivery], known: bool) -> dict[str, Any]:
        """The parameters of `claim`, whatever is known: no row says which record is its own."""
        return self.claim(deliveries)

    def to_store(self, delivery: Delivery) -> Mapping[str, Any]:
        """What the record says, unless it is stored already."""
        stored = delivery.to_store
        if stored is None:
            return {}
        return {
            "biz_type": _stored_type(delivery),
            "payload": stored.payload,
            "created_ms": stored.created_ms,
        }

    def _parse(
        self, delivery: Delivery, payload: str | None, created_ms: int | None, attempts: int = 0
    ) -> None:
        agent = self._registry.agents.get(delivery.biz_type)
        try:
            if agent is None:
                raise unknown(delivery.biz_type, self._registry)
            try:
                key, event = envelope.decoded(payload, agent.event)
            except (Exception, asyncio.CancelledError):
                raise
            except BaseException as error:
                raise let_out(agent.event, error) from None
            created_ms = time_of(created_ms)
        except Unreadable as fault:
            delivery.message, delivery.fault = None, fault
        else:
            delivery.fault = None
            delivery.message = Message(
                delivery.outbox_id, key, event, created_ms, attempts, self.source
            )

    def _key(self, delivery: Delivery, payload: str, key: bytes | None) -> str:
        """The conversation of a message that cannot be read.

        It is that of its payload, else of its record, else ''.
        """
        agent = self._registry.agents.get(delivery.biz_type)
        named = envelope.conversation(payload, agent.event) if agent else None
        return named or codec.key_text((key or b"").decode("utf-8", "replace")) or ""


def _stored_type(delivery: Delivery) -> str:
    return storable(delivery.biz_type)[:BIZ_TYPE_STORED]
