"""Conversations that wait: behind which message, and letting those go on that a dead one holds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from streams.database import query
from streams.database.transacted import transacted
from streams.errors import StreamsError
from streams.message_id import MessageId, foreign, name_of, ours
from streams.operate.replay import Operator, note


class NotHeld(StreamsError):
    """No dead message holds this conversation: nothing was done."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """One conversation with `open` messages.

    The first of them is `head`, whose status says what it waits for.
    """

    topic: str
    key: str
    open: int
    head: MessageId
    status: str
    error_code: str | None
    since: datetime


def waiting(
    connection: Connection,
    *,
    key: str | None = None,
    held: bool = False,
    source: str | None = None,
    limit: int = 50,
) -> list[Waiting]:
    """Conversations with open messages, the longest waiting first.

    `held`: only those that wait for an operator.
    """
    parameters = {"key": key, "held": held, "source": source, "limit": limit}
    rows = connection.exec_driver_sql(query("waiting_conversations"), parameters)
    return [
        Waiting(topic, key, n, name_of(whose, head), *rest)
        for whose, topic, key, n, head, *rest in rows
    ]


def release(
    connection: Connection, key: str, operator: Operator, *, topic: str | None = None
) -> list[MessageId]:
    """Let a conversation go on past the dead messages that hold it.

    Returns their ids. They stay dead, and can be replayed.

    NotHeld when there is none. Workers take it up within half a minute.
    """

    def let_go() -> list[MessageId]:
        where = {"key": key, "topic": topic}
        holding = {"ids": [row[0] for row in connection.exec_driver_sql(query("holding"), where)]}
        ids: list[MessageId] = [
            row[0] for row in connection.exec_driver_sql(query("held"), holding)
        ]
        ids += [name_of(*row) for row in connection.exec_driver_sql(query("foreign_held"), where)]
        if not ids:
            raise NotHeld(f"no dead message holds a conversation with the key {key!r:.80}")
        connection.exec_driver_sql(query("release"), {"ids": ours(ids)})
        connection.exec_driver_sql(query("foreign_release"), foreign(ids))
        note(connection, operator, "release", ids, {"key": key, "topic": topic})
        return ids

    return transacted(connection, let_go)
