"""Dead messages as an operator sees them: one by one, or a line for each kind of error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection

from streams.database import query
from streams.message_id import MessageId, name_of, parts_of, read_name
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


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadFilter:
    """Which dead messages a page shows: None lets everything through; `since` is when they died."""

    source: str | None = None
    biz_type: str | None = None
    topic: str | None = None
    key: str | None = None
    error_code: str | None = None
    fingerprint: str | None = None
    since: datetime | None = None
    held: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadRow:
    """One dead message on a page; `died` is its place in the order of dying."""

    outbox_id: MessageId
    biz_type: str | None
    topic: str | None
    key: str | None
    error_code: str | None
    fingerprint: str
    held: bool
    died: int
    died_at: datetime
    attempts: int
    replays: int
    error: str | None


@dataclass(frozen=True, slots=True)
class DeadPage:
    """Some dead messages, those that died last first.

    `before` is where the next page begins, None on the last.
    """

    rows: tuple[DeadRow, ...]
    before: int | None


class Tries(NamedTuple):
    """What a message failed with last, how often it was tried, and how often replayed."""

    error: str | None = None
    attempts: int = 0
    replays: int = 0


def tries_of(connection: Connection, names: Iterable[MessageId]) -> Mapping[MessageId, Tries]:
    """How these messages failed; a message that has no state has never been tried.

    They are asked for by their ids, so that no other partitions are opened than theirs.
    """
    tries = dict.fromkeys(names, Tries())
    parts = [parts_of(name) for name in tries]
    if own := [outbox_id for source, outbox_id in parts if not source]:
        for outbox_id, *rest in connection.exec_driver_sql(query("look_errors"), {"ids": own}):
            tries[name_of("", outbox_id)] = Tries(*rest)
    if foreign := [(source, outbox_id) for source, outbox_id in parts if source]:
        sources, ids = zip(*foreign, strict=True)
        asked = {"sources": list(sources), "ids": list(ids)}
        for source, outbox_id, *rest in connection.exec_driver_sql(
            query("look_foreign_errors"), asked
        ):
            tries[name_of(source, outbox_id)] = Tries(*rest)
    return tries


def page(
    connection: Connection, which: DeadFilter, *, before: int | None = None, limit: int = 50
) -> DeadPage:
    """The dead messages that fit, from before one on."""
    parameters = asdict(which) | {"before": before, "limit": limit + 1}
    rows = connection.exec_driver_sql(query("dead_page"), parameters).all()
    tries = tries_of(connection, (name_of(*row[:2]) for row in rows[:limit]))
    shown = tuple(_row(tries, *row) for row in rows[:limit])
    return DeadPage(shown, shown[-1].died if len(rows) > limit else None)


def letters(connection: Connection, choice: Choice) -> list[Letter]:
    """The dead messages that fit, oldest first."""
    rows = connection.exec_driver_sql(query("dead_letters"), choice.parameters())
    return [Letter(read_name(name), *row) for name, *row in rows]


def groups(connection: Connection, choice: Choice) -> list[Group]:
    """The kinds of error among the dead messages that fit, the most frequent first."""
    rows = connection.exec_driver_sql(query("dead_groups"), choice.parameters()).mappings().all()
    examples = [read_name(row["example"]) for row in rows]
    tries = tries_of(connection, examples)
    return [
        Group(**dict(row) | {"example": example, "error": tries[example].error})
        for row, example in zip(rows, examples, strict=True)
    ]


def payload(connection: Connection, name: MessageId) -> str:
    """The text that counts for this message: its own, or that of its last replay."""
    source, outbox_id = parts_of(name)
    parameters = {"source": source, "outbox_id": outbox_id}
    if not source:
        parameters["body"] = connection.exec_driver_sql(
            query("body_of"), parameters
        ).scalar_one_or_none()
    statement = query("foreign_payload") if source else query("dead_payload")
    row = connection.exec_driver_sql(statement, parameters).mappings().one_or_none()
    if row is None or row["payload"] is None:
        raise NotDead(f"message {name} is not known, or its fate has not begun")
    return str(row["payload"])


def _row(tries: Mapping[MessageId, Tries], source: str, outbox_id: int, *rest: Any) -> DeadRow:
    biz_type, topic, key, code, fingerprint, held, died, died_at = rest
    name = name_of(source, outbox_id)
    return DeadRow(
        outbox_id=name,
        biz_type=biz_type,
        topic=topic,
        key=key,
        error_code=code,
        fingerprint=fingerprint,
        held=held,
        died=died,
        died_at=died_at,
        attempts=tries[name].attempts,
        replays=tries[name].replays,
        error=tries[name].error,
    )
