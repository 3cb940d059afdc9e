"""Where a topic's messages come from: how its records are read, and by which statements their fate is written down.

Two origins: our own outbox, whose rows say what a message is, and another system, whose envelopes are all there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, LiteralString, Protocol

from db import query
from streams.codec import Unreadable
from streams.registry import Registry
from streams.worker import decode
from streams.worker.decode import Incoming, Rejected, milliseconds


class Origin(Protocol):
    """What a transaction has to know of a topic; `source` is '' for our own outbox.

    `settle` names the statement that forgets what was kept of messages which are settled now, if anything is kept.
    """

    source: str
    settle: LiteralString | None

    def read(self, records: Iterable[Any]) -> tuple[list[Incoming], list[Rejected]]:
        """Each message's first record, in order, and what is no message."""

    def fill(self, one: Incoming, row: Sequence[Any], attempts: int) -> None:
        """Make the message what is stored says, not its record: (id, biz_type, key, payload, created_at)."""

    def statement(self, name: str) -> LiteralString:
        """The named query that does this here."""

    def claim(self, some: Sequence[Incoming]) -> dict[str, Any]:
        """The parameters of `claim` that say which messages."""

    def kept(self, one: Incoming) -> Mapping[str, Any]:
        """What has to be stored of a message that is set aside, beside its fate."""


class Outbox:
    """Our own outbox: the row that a record names says what the message is."""

    source = ""
    settle: LiteralString | None = None

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def read(self, records: Iterable[Any]) -> tuple[list[Incoming], list[Rejected]]:
        """By the headers that the relay writes."""
        return decode.read(records, self._registry)

    def fill(self, one: Incoming, row: Sequence[Any], attempts: int) -> None:
        """The message as its outbox rows say: what a broken record means."""
        outbox_id, biz_type, key, payload, created_at = row
        one.key, one.biz_type, one.attempts = key, biz_type, attempts
        try:
            created_ms = milliseconds(created_at)
            one.message = decode.parse(payload, biz_type, outbox_id, key, created_ms, self._registry, attempts)
            one.fault = None
        except Unreadable as fault:
            one.message, one.fault = None, fault

    def statement(self, name: str) -> LiteralString:
        """As it is."""
        return query(name)

    def claim(self, some: Sequence[Incoming]) -> dict[str, Any]:
        """An array of numbers as text: a tenth of the price of binding a list."""
        ids = [one.outbox_id for one in some]
        return {
            "ids": "{" + ",".join(map(str, ids)) + "}",
            "first": min(ids),
            "last": max(ids),
            "partitions": "{" + ",".join([str(one.partition) for one in some]) + "}",
            "offsets": "{" + ",".join([str(one.offset) for one in some]) + "}",
        }

    def kept(self, one: Incoming) -> Mapping[str, Any]:
        """Nothing: the outbox row stays."""
        return {}
