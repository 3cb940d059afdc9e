"""The text of settled messages taken out of the outbox.

Their rows stay, so that nothing else has to change.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from streams.database import query
from streams.database.partitions import first_sync
from streams.database.refusals import IN_THE_WAY, sqlstate
from streams.database.transacted import PAUSES, transacted
from streams.errors import ServiceUnreachable
from streams.message_id import name_of
from streams.operate.replay import Operator
from streams.operate.trail import write_act

WINDOW = 200_000
TEXTS = 100
SETTLED = ("consumed", "discarded")


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Whose messages are meant: a conversation's, or those with a value in a field.

    The latter are of one biz_type, and the field is one of its payload.
    """

    key: str | None = None
    biz_type: str | None = None
    field: str | None = None
    value: str | None = None


@dataclass(slots=True)
class Erased:
    """What was done so far.

    ids: rows without text now; open: messages that were left, because they are not settled;
    foreign: rows of other systems' messages, foreign_open: those that were left, unclear: those
    that no one can look into; topics: for each topic when the newest of the rows was written;
    share: how much of the outbox was looked through.
    """

    ids: list[int] = field(default_factory=list)
    open: set[int] = field(default_factory=set)
    foreign: int = 0
    foreign_open: int = 0
    unclear: list[str] = field(default_factory=list)
    topics: dict[str, datetime] = field(default_factory=dict)
    share: float = 0.0

    def add(self, window: Erased) -> None:
        """What was done in one more window, once it is committed."""
        self.ids += window.ids
        self.open |= window.open
        for topic, written in window.topics.items():
            self.topics[topic] = max(written, self.topics.get(topic, written))


def erase(
    connection: Connection,
    person: Person,
    operator: Operator,
    *,
    force: bool = False,
    dry: bool = False,
) -> Iterator[Erased]:
    """Take the text out, a window of ids in each transaction, act noted.

    Yields how far it is, the last time all of it.

    With `force` also that of messages which are not settled; a record that nobody has read yet is
    persisted all the same.

    Of messages that were enqueued before it began, and of every row that sends one of them again:
    also of one that is written while this goes through, behind where it was to end.
    """
    with connection.begin():
        first = first_sync(connection) - 1
        newest = _last(connection)
    after, last, erased, known = first, newest, Erased(), 0
    while after < last:
        until = min(after + WINDOW, last)
        window = partial(
            _erase_window, connection, person, operator, after, until, newest, force=force, dry=dry
        )
        erased.add(_not_in_the_way(connection, window))
        after = until
        erased.share = min(1.0, (after - first) / (newest - first))
        yield erased
        if after == last and len(erased.ids) > known:
            # A row with a copy of a text was written before that text was erased.
            known = len(erased.ids)
            with connection.begin():
                last = _last(connection)
    with connection.begin():
        found = _foreign(connection, person, erased)
        erased.foreign = sum(map(len, found.values()))
        if found and not dry:
            for source, ids in found.items():
                given = {"source": source, "ids": ids}
                connection.exec_driver_sql(query("erase_foreign"), given)
            _note(connection, operator, person, erased.foreign, [])
    yield erased


def _foreign(connection: Connection, person: Person, erased: Erased) -> dict[str, list[int]]:
    """Settled messages of other systems with a text that is the person's, by source.

    The others are noted: those that are not settled, and those whose text nobody can look into.
    """
    found: dict[str, list[int]] = {}
    source, after = "", 0
    where = {"biz_type": person.biz_type, "most": TEXTS}
    while rows := connection.exec_driver_sql(
        query("foreign_texts"), where | {"source": source, "after": after}
    ).all():
        for source, after, status, key, *texts, key_field in rows:
            by_key = person.key is not None
            name, value = (key_field, person.key) if by_key else (person.field, person.value)
            meant = by_key and key == person.key
            try:
                meant = meant or any(
                    _foreign_value(text, name) == value for text in texts if text is not None
                )
            except (ValueError, RecursionError):
                # What is no JSON names no conversation but that of its record.
                if not by_key:
                    erased.unclear.append(str(name_of(source, after)))
            if meant and status in SETTLED:
                found.setdefault(source, []).append(after)
            elif meant:
                erased.foreign_open += 1
    return found


def _foreign_value(text: str, name: str | None) -> str | None:
    """A field of another system's payload, an object or one in a text; ValueError: it is none."""
    if text.startswith('"'):
        text = json.loads(text)
    return _value(text, name)


def _last(connection: Connection) -> int:
    return int(connection.exec_driver_sql(query("last_id")).scalar_one())


def _erase_window(
    connection: Connection,
    person: Person,
    operator: Operator,
    after: int,
    until: int,
    newest: int,
    *,
    force: bool,
    dry: bool,
) -> Erased:
    where = {"after": after, "until": until, "key": person.key, "biz_type": person.biz_type}
    where |= {"field": person.field, "value": person.value}
    rows, erased = _rows(connection, where, newest), Erased()
    if not rows:
        return erased
    roots = {"ids": list({row[1] for row in rows})}
    # With force a message may be replayed meanwhile: whoever does has ended, or waits.
    asked = "statuses_lock" if force and not dry else "statuses"
    states = connection.exec_driver_sql(query(asked), roots)
    settled = {row[0] for row in states if row[1] in SETTLED}
    settled |= set(connection.exec_driver_sql(query("settled_and_gone"), roots).scalars())
    # Once more: what sends one of them again may have been committed since.
    rows = _rows(connection, where, newest)
    chosen = [row for row in rows if force or row[1] in settled]
    erased.open |= {row[1] for row in rows} - settled
    for _, _, topic, written in chosen:
        erased.topics[topic] = max(written, erased.topics.get(topic, written))
    ids = [row[0] for row in chosen]
    if ids and not dry:
        connection.exec_driver_sql(query("erase_rows"), {"ids": ids})
        _note(connection, operator, person, len(ids), ids)
    erased.ids += ids
    return erased


def _not_in_the_way(connection: Connection, window: Callable[[], Erased]) -> Erased:
    """The window in a transaction; ServiceUnreachable when others were always in its way."""
    try:
        return transacted(connection, window)
    except DBAPIError as error:
        if sqlstate(error) not in IN_THE_WAY:
            raise
        raise ServiceUnreachable(
            f"workers or operators were in the way {len(PAUSES) + 1} times: run it again, it goes"
            " on with what is left"
        ) from error


def _rows(connection: Connection, where: dict[str, Any], newest: int) -> list[Sequence[Any]]:
    """Rows of the person in a window, of messages up to `newest`.

    With each that has such a value in a field, all rows of its message: a replay may have sent it
    with another one.
    """
    rows: list[Sequence[Any]] = list(connection.exec_driver_sql(query("erase_window"), where))
    if where["biz_type"] is not None:
        for *row, text in connection.exec_driver_sql(query("erase_escaped"), where):
            if _value(text, where["field"]) == where["value"]:
                rows.append(row)
        if roots := {row[1] for row in rows}:
            found, of = {row[0] for row in rows}, {"ids": list(roots), "first": min(roots)}
            all_of_them = connection.exec_driver_sql(query("erase_of_roots"), of)
            rows += [row for row in all_of_them if row[0] not in found]
    return [row for row in rows if row[1] <= newest]


def _value(text: str, name: str | None) -> str | None:
    """A field of a payload as PostgreSQL's ->> would show it, if it could show this one."""
    payload = json.loads(text, parse_int=str, parse_float=str)
    value = payload.get(name) if isinstance(payload, dict) else None
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else value


def _note(
    connection: Connection, operator: Operator, person: Person, count: int, ids: list[int]
) -> None:
    """Whom it was about is said by the ids: their rows have the key."""
    what = {"count": count, "ids": ids, "biz_type": person.biz_type, "field": person.field}
    said = {name: value for name, value in what.items() if value}
    write_act(connection, "erase", operator.who, operator.why, said)
