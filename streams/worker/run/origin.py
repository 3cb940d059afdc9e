"""Where a topic's messages come from: how records are read, where their fate is written down.

Two origins: our own outbox, whose rows say what a message is, and another system, whose envelopes
are all there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import md5
from operator import attrgetter
from struct import Struct
from typing import Any, LiteralString, Protocol

import orjson

from streams.codec import Unreadable
from streams.database import query
from streams.registry import Registry
from streams.worker.delivery import Delivery, Rejected
from streams.worker.failure.classify import name_of
from streams.worker.run import decode
from streams.worker.run.decode import NOBODY

Y2K = 946_684_800_000  # where PostgreSQL's timestamps begin, in milliseconds since 1970
EARLIEST, LATEST = 0, 253_402_300_799_999  # from 1970 to the end of the year 9999
_eight_bytes = Struct(">q").pack
_by_id = attrgetter("outbox_id")


class Origin(Protocol):
    """What a transaction has to know of a topic; `source` is '' for our own outbox.

    `settle` names the statement that forgets what was kept of messages which are settled now, if
    anything is kept; `has_rows` says whether an outbox row tells which record is its own.
    """

    source: str
    settle: LiteralString | None
    has_rows: bool

    @property
    def runs_code(self) -> bool:
        """Whether reading a payload runs somebody's own code, which may end the process."""

    def ids(self, records: Iterable[Any]) -> list[tuple[int, int]]:
        """(outbox id, offset) of the records that name a message; no payload is read for it."""

    def read(
        self, records: Iterable[Any], condemned: Mapping[int, Exception] = NOBODY
    ) -> tuple[list[Delivery], list[Rejected]]:
        """Each message's first record, in order, and what is no message.

        The payloads of those that are condemned, by outbox id, are not read: why is their fault.
        """

    def load_stored(self, delivery: Delivery, row: Sequence[Any], attempts: int) -> None:
        """Make the message what is stored says, not its record.

        Stored is (id, biz_type, key, payload, created_ms), each None where it is missing. Whoever
        is not an origin calls `load`.
        """

    def statement(self, name: str) -> LiteralString:
        """The named query that does this here."""

    def claim(self, deliveries: Sequence[Delivery]) -> dict[str, Any]:
        """The parameters of `claim_all` that say which messages."""

    def claim_each(self, deliveries: Sequence[Delivery], known: bool) -> dict[str, Any]:
        """The parameters of `claim`.

        `known` when the records are known to be their outbox rows'.
        """

    def to_store(self, delivery: Delivery) -> Mapping[str, Any]:
        """What has to be stored of a message that is set aside, beside its fate."""


class Dated(Protocol):
    """A record as far as it has to agree with its outbox row."""

    @property
    def outbox_id(self) -> int:
        """The row."""

    @property
    def key(self) -> str:
        """The conversation."""

    @property
    def time(self) -> int | None:
        """Milliseconds since 1970; None when the record has no time of its own."""


def digest(deliveries: Iterable[Dated]) -> str:
    """One digest over keys and times of records, in the order of their ids.

    `claim_all` makes the same of the outbox rows.
    """
    parts: list[bytes] = []
    for delivery in sorted(deliveries, key=_by_id):
        time = delivery.time
        if time is None or not EARLIEST <= time <= LATEST:
            return ""  # like no row's
        parts.append(delivery.key.encode())
        parts.append(_eight_bytes((time - Y2K) * 1000))
    return md5(b"".join(parts), usedforsecurity=False).hexdigest()


def load(origin: Origin, delivery: Delivery, row: Sequence[Any], attempts: int) -> None:
    """Make the message what is stored says; what cannot be loaded is unreadable.

    Whatever is wrong with it, it costs this message, never the worker: whoever got the partition
    next would meet it again.
    """
    try:
        origin.load_stored(delivery, row, attempts)
    except MemoryError:  # the process's
        raise
    except Exception as error:  # whatever it is, see above
        name = name_of(error)
        delivery.message = None
        delivery.fault = Unreadable(f"what is stored of it cannot be loaded: {name}", code=name)


def time_of(created_ms: int | None) -> int:
    """The stored time of a message; Unreadable when it has none."""
    if created_ms is None:
        raise Unreadable(
            "created_at is missing or no time of the years 1 to 9999", code="created_at"
        )
    return created_ms


class Outbox:
    """Our own outbox: the row that a record names says what the message is."""

    source = ""
    settle: LiteralString | None = None
    has_rows = True

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    @property
    def runs_code(self) -> bool:
        """Whether reading a payload runs somebody's own code."""
        return decode.runs_code(self._registry)

    def ids(self, records: Iterable[Any]) -> list[tuple[int, int]]:
        """As the headers name them: a resend by its root."""
        return decode.ids(records)

    def read(
        self, records: Iterable[Any], condemned: Mapping[int, Exception] = NOBODY
    ) -> tuple[list[Delivery], list[Rejected]]:
        """Each message's first record, and what is no message.

        A record is known by the headers that the relay writes.
        """
        return decode.read(records, self._registry, condemned)

    def load_stored(self, delivery: Delivery, row: Sequence[Any], attempts: int) -> None:
        """Make the message what its outbox rows say: what a broken record means."""
        outbox_id, biz_type, key, payload, created_ms = row
        delivery.key, delivery.biz_type, delivery.attempts = key, biz_type or "", attempts
        try:
            if biz_type is None:
                raise Unreadable("its outbox row is gone", code="row")
            delivery.message = decode.parse(
                payload, biz_type, outbox_id, key, time_of(created_ms), self._registry, attempts
            )
            delivery.fault = None
        except Unreadable as fault:
            delivery.message, delivery.fault = None, fault

    def statement(self, name: str) -> LiteralString:
        """The named query, as it is."""
        return query(name)

    def claim(self, deliveries: Sequence[Delivery]) -> dict[str, Any]:
        """Arrays of numbers as text: a tenth of the price of binding a list."""
        ids = [delivery.outbox_id for delivery in deliveries]
        return {
            "ids": "{" + ",".join(map(str, ids)) + "}",
            "first": min(ids),
            "last": max(ids),
            "partitions": "{"
            + ",".join([str(delivery.partition) for delivery in deliveries])
            + "}",
            "offsets": "{" + ",".join([str(delivery.offset) for delivery in deliveries]) + "}",
            "digest": digest(deliveries),
        }

    def claim_each(self, deliveries: Sequence[Delivery], known: bool) -> dict[str, Any]:
        """One JSON array, with what the row has to agree to."""
        rows = [
            {
                "id": delivery.outbox_id,
                "partition": delivery.partition,
                "offset": delivery.offset,
                "key": delivery.key,
                "ms": delivery.time,
                "known": known,
            }
            for delivery in deliveries
        ]
        ids = [delivery.outbox_id for delivery in deliveries]
        return {"records": orjson.dumps(rows).decode(), "first": min(ids), "last": max(ids)}

    def to_store(self, delivery: Delivery) -> Mapping[str, Any]:
        """Nothing: the outbox row stays."""
        return {}
