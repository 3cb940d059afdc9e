"""Which dead messages an operator means: ids, or a filter whose parts all have to fit.

An id is an outbox id, or `source:id` for a message of another system.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from streams.database import query
from streams.errors import StreamsError
from streams.message_id import MessageId, parts_of, read_name


class NotDead(StreamsError):
    """A message was named that is not dead: nothing was done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """None lets everything through; `error` is an error code or a fingerprint.

    `since` is when they died.

    `source` is the name of another system, '' for our own outbox.
    """

    ids: Sequence[MessageId] | None = None
    source: str | None = None
    biz_type: str | None = None
    key: str | None = None
    error: str | None = None
    since: datetime | None = None
    limit: int | None = None

    @property
    def empty(self) -> bool:
        """Whether it means every dead message there is."""
        return self.source is None and not any(
            (self.ids, self.biz_type, self.key, self.error, self.since, self.limit)
        )

    def parameters(self) -> dict[str, Any]:
        """As the named queries of the desk read it."""
        return asdict(self) | {"names": [str(name) for name in self.ids] if self.ids else None}

    def said(self) -> dict[str, Any]:
        """As it is written down, without what was not said."""
        plain = {name: value for name, value in asdict(self).items() if value and name != "ids"}
        return plain | ({"since": self.since.isoformat()} if self.since else {})


def in_order(connection: Connection, choice: Choice) -> list[MessageId]:
    """The ids, conversation after conversation, each in its original order.

    NotDead when one was named that is not.
    """
    rows = connection.exec_driver_sql(query("dead_in_order"), choice.parameters())
    names = [read_name(row[0]) for row in rows]
    missing = sorted(set(choice.ids or ()) - set(names), key=parts_of)
    if missing and not choice.limit:
        status = _status(connection, missing[0]) or "not known, or its fate has not begun"
        unfit = " but does not fit the filter" if status == "dead" else ", expected dead"
        raise NotDead(f"message {missing[0]} is {status}{unfit}: nothing was done")
    return names


def _status(connection: Connection, name: MessageId) -> str | None:
    source, outbox_id = parts_of(name)
    if source:
        rows = connection.exec_driver_sql(
            query("foreign_status"), {"source": source, "outbox_id": outbox_id}
        )
        return rows.scalar_one_or_none()
    known = connection.exec_driver_sql(query("statuses"), {"ids": [outbox_id]}).one_or_none()
    return known[1] if known else None
