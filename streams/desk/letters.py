"""Dead messages as an operator sees them: one by one, or one line for each kind of error; text only on request."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from db import query
from streams.desk.choice import Choice, NotDead


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead message; `held` says that its conversation waits for an operator, `since` is when it died."""

    outbox_id: int
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
    example: int
    error: str | None


def letters(connection: Connection, choice: Choice) -> list[Letter]:
    """The dead messages that fit, oldest first."""
    return [Letter(*row) for row in connection.exec_driver_sql(query("dead_letters"), choice.parameters())]


def groups(connection: Connection, choice: Choice) -> list[Group]:
    """The kinds of error among the dead messages that fit, the most frequent first."""
    return [Group(*row) for row in connection.exec_driver_sql(query("dead_groups"), choice.parameters())]


def payload(connection: Connection, outbox_id: int) -> str:
    """The text that counts for this message: its own, or that of its last replay."""
    row = connection.exec_driver_sql(query("dead_payload"), {"outbox_id": outbox_id}).one_or_none()
    if row is None:
        raise NotDead(f"message {outbox_id} is not known, or its fate has not begun")
    return str(row[1])
