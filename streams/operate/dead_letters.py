"""Dead messages as an operator sees them: one by one, or one line for each kind of error; text only on request."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from streams.database import query
from streams.message_id import MessageId, parts_of, read_name
from streams.operate.selection import Choice, NotDead


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead message, `source:id` if it is another system's.

    `held` says that its conversation waits for an operator, `since` is when it died.
    """

    outbox_id: MessageId
    biz_type: str
    topic: str
    key: str
    attempts: int
    replays: int
    error_code: str | None
    error: str | None
    fingerprint: str
    held: bool
    since: datetime


@dataclass(frozen=True, slots=True)
class Group:
    """Dead messages of one kind of error: equal but for numbers."""

    fingerprint: str
    biz_type: str
    error_code: str | None
    messages: int
    conversations: int
    first: datetime
    last: datetime
    example: MessageId
    error: str | None


def letters(connection: Connection, choice: Choice) -> list[Letter]:
    """The dead messages that fit, oldest first."""
    rows = connection.exec_driver_sql(query("dead_letters"), choice.parameters())
    return [Letter(read_name(name), *row) for name, *row in rows]


def groups(connection: Connection, choice: Choice) -> list[Group]:
    """The kinds of error among the dead messages that fit, the most frequent first."""
    rows = connection.exec_driver_sql(query("dead_groups"), choice.parameters())
    return [Group(**dict(row) | {"example": read_name(row["example"])}) for row in rows.mappings()]


def payload(connection: Connection, name: MessageId) -> str:
    """The text that counts for this message: its own, or that of its last replay."""
    source, outbox_id = parts_of(name)
    parameters = {"source": source, "outbox_id": outbox_id}
    statement = query("foreign_payload") if source else query("dead_payload")
    row = connection.exec_driver_sql(statement, parameters).mappings().one_or_none()
    if row is None or row["payload"] is None:
        raise NotDead(f"message {name} is not known, or its fate has not begun")
    return str(row["payload"])
