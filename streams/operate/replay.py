"""Replay and discard: bounded transactions in order, each with its row in `outbox_actions`.

A replay is a new outbox row that names its root, so the relay publishes it like any other; the
root's state says `replaying` and which row counts, and a worker takes no other. A message of
another system has no outbox row: it is due again with the payload that was kept, and workers take
it up.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Connection

from streams import codec, envelope
from streams.database import query
from streams.database.transacted import transacted
from streams.errors import StreamsError, UsageError
from streams.events import EventType
from streams.message_id import MessageId, foreign, name_of, ours, parts_of
from streams.operate.selection import Choice, NotDead, in_order
from streams.operate.trail import write_act
from streams.registry import Agent, Registry

# Messages a transaction: it holds their row locks, and a worker may wait for one of them.
BATCH = 1000
# What failed again after so many replays needs another cure: `force` overrides.
MOST_REPLAYS = 3


class TextChanged(StreamsError):
    """The text that was compared is not the one that would be replaced."""


class ReplayLimitReached(StreamsError):
    """A message was replayed too often already: nothing was done."""


@dataclass(frozen=True, slots=True)
class Operator:
    """Who acts, and why."""

    who: str
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What one committed transaction did.

    `circling` were replayed too often, `gone` were no longer dead.
    """

    done: int
    circling: int = 0
    gone: int = 0

    @property
    def worked(self) -> int:
        """How many messages of the plan this step covers."""
        return self.done + self.circling + self.gone


class Ledger(Protocol):
    """Whoever keeps account of an act, inside each of its transactions.

    `operation` is what the act is part of.
    """

    operation: int

    def goes_on(self) -> bool:
        """Whether the act is still wanted; asked before anything else is locked."""

    def still(self, ids: Sequence[MessageId]) -> list[MessageId]:
        """Those of these messages that the act is about.

        One that died again since is another death.
        """

    def note(self, outcomes: Mapping[MessageId, str]) -> None:
        """What became of each: sent, done, circling or gone."""


def replay(
    connection: Connection,
    ids: Sequence[MessageId],
    operator: Operator,
    choice: Choice,
    *,
    force: bool = False,
    rate: float | None = None,
    ledger: Ledger | None = None,
) -> Iterator[Step]:
    """Send these dead messages again, in this order (`in_order` gives it), at most `rate` a second.

    Each step is committed when it is yielded. Messages replayed MOST_REPLAYS times are left dead
    unless `force`; one that is circling alone is a ReplayLimitReached. What was erased, or has lost
    its outbox row, is refused; as part of an operation it is left alone, since it must not hold up
    the others.
    """

    def one(batch: Sequence[MessageId]) -> Step | None:
        if ledger is not None and not ledger.goes_on():
            return None
        dead = _lock(connection, batch, ledger)
        circling = {name for name in dead if not force and dead[name].replays >= MOST_REPLAYS}
        chosen = [name for name in batch if name in dead and name not in circling]
        if len(circling) == len(ids) == 1 and ledger is None:
            raise ReplayLimitReached(
                f"message {ids[0]} was replayed {dead[ids[0]].replays} times already and died"
                " again: mend the cause, then --force"
            )
        if ledger is None:
            _send_again(connection, chosen, dead)
        else:
            chosen = _send_what_can(connection, chosen, dead)
        about = {"filter": choice.said(), "force": force} | _deaths(dead, chosen)
        _account(connection, operator, "replay", chosen, about, ledger)
        if ledger is not None:
            outcomes = dict.fromkeys(batch, "gone") | dict.fromkeys(circling, "circling")
            ledger.note(outcomes | dict.fromkeys(chosen, "sent"))
        return Step(len(chosen), len(circling), len(batch) - len(chosen) - len(circling))

    yield from _steps(connection, ids, rate, one)


def discard(
    connection: Connection,
    ids: Sequence[MessageId],
    operator: Operator,
    choice: Choice,
    *,
    rate: float | None = None,
    ledger: Ledger | None = None,
) -> Iterator[Step]:
    """Give these dead messages up for good; each step is committed when it is yielded."""

    def one(batch: Sequence[MessageId]) -> Step | None:
        if ledger is not None and not ledger.goes_on():
            return None
        chosen = list(_lock(connection, batch, ledger))
        connection.exec_driver_sql(query("dead_discard"), {"ids": ours(chosen)})
        connection.exec_driver_sql(query("foreign_discard"), foreign(chosen))
        _account(connection, operator, "discard", chosen, {"filter": choice.said()}, ledger)
        if ledger is not None:
            done = dict.fromkeys(chosen, "done")
            ledger.note({message_id: done.get(message_id, "gone") for message_id in batch})
        return Step(len(chosen), gone=len(batch) - len(chosen))

    yield from _steps(connection, ids, rate, one)


def edit(
    connection: Connection,
    name: MessageId,
    text: bytes,
    registry: Registry,
    max_bytes: int,
    operator: Operator,
    *,
    compared: str | None = None,
) -> None:
    """Replay one dead message with another payload.

    The old one stays in its outbox row, or beside the new one. `compared` is the SHA-256, in hex,
    of the text that the new one was compared with.

    UsageError says what is wrong with the payload, or that it belongs to another conversation;
    TextChanged that somebody has replaced the compared text.
    """

    def replace() -> None:
        dead, letter = _letter(connection, name, registry)
        if compared not in (None, hashlib.sha256(letter.text.encode()).hexdigest()):
            raise TextChanged(
                f"message {name} was edited since you compared it: compare it again, nothing was"
                " done"
            )
        key, payload = _checked(text, letter.event, letter.key, max_bytes)
        if letter.row is None:
            source, outbox_id = parts_of(name)
            given = {"source": source, "outbox_id": outbox_id, "payload": payload, "key": key}
            connection.exec_driver_sql(query("foreign_edit"), given)
        _send_again(connection, [name], dead, None if letter.row is None else payload)
        about = {"edited": True, "replaced": letter.row} | _deaths(dead, [name])
        note(connection, operator, "replay", [name], about)

    transacted(connection, replace)


def compare(
    connection: Connection,
    name: MessageId,
    text: bytes,
    registry: Registry,
    max_bytes: int,
    operator: Operator,
) -> tuple[str, str]:
    """A dead message's payload that counts now, and this one as `edit` would store it.

    Whoever sees the difference has read the text, and that is written down. UsageError as there,
    and nothing is done.
    """
    with connection.begin():
        _, letter = _letter(connection, name, registry)
        new = _checked(text, letter.event, letter.key, max_bytes)[1]
        note(connection, operator, "read text", [name], {"compared": True})
    return letter.text, new


def plan(connection: Connection, choice: Choice) -> list[MessageId]:
    """The messages an act on this choice would work, in its order.

    It leaves the connection in no transaction.
    """
    with connection.begin():
        return in_order(connection, choice)


def note(
    connection: Connection,
    operator: Operator,
    act: str,
    ids: list[MessageId],
    about: dict[str, Any],
) -> None:
    """Write an act on these messages down, in the transaction that does it.

    Nothing is written when there are none.
    """
    if not ids:
        return
    what = {"count": len(ids), "ids": ids} | {name: value for name, value in about.items() if value}
    only_id = ids[0] if len(ids) == 1 and isinstance(ids[0], int) else None
    write_act(connection, act, operator.who, operator.why, what, outbox_id=only_id)


def slice_of(rate: float | None) -> int:
    """How many messages go at once at so many a second."""
    return BATCH if rate is None else max(1, min(BATCH, int(rate)))


def _steps(
    connection: Connection,
    ids: Sequence[MessageId],
    rate: float | None,
    one: Callable[[Sequence[MessageId]], Step | None],
) -> Iterator[Step]:
    """Each slice of the plan in a transaction, until there is no step of one."""
    for batch in _paced(ids, rate):
        step = transacted(connection, partial(one, batch))
        if step is None:
            return
        yield step


def _paced(ids: Sequence[MessageId], rate: float | None) -> Iterator[Sequence[MessageId]]:
    """Slices of the plan, each when the rate lets it go."""
    size = slice_of(rate)
    began = time.monotonic()
    for start in range(0, len(ids), size):
        if rate is not None:
            time.sleep(max(0.0, began + start / rate - time.monotonic()))
        yield ids[start : start + size]


def _account(
    connection: Connection,
    operator: Operator,
    act: str,
    ids: list[MessageId],
    about: dict[str, Any],
    ledger: Ledger | None,
) -> None:
    operation = {"operation": ledger.operation} if ledger is not None else {}
    note(connection, operator, act, ids, about | operation)


class _Death(NamedTuple):
    """How a message stood when an operator took it up: a replay overwrites that in its state.

    `body` is the outbox row whose payload counts, None for another system's message.
    """

    replays: int
    at: datetime
    attempts: int
    error_code: str | None
    error: str | None
    body: int | None = None


def _lock(
    connection: Connection, ids: Sequence[MessageId], ledger: Ledger | None
) -> dict[MessageId, _Death]:
    """Those still dead, with how they stand."""
    dead = _locked(connection, ids)
    if ledger is None:
        return dead
    return {message_id: dead[message_id] for message_id in ledger.still(list(dead))}


def _locked(connection: Connection, ids: Sequence[MessageId]) -> dict[MessageId, _Death]:
    rows = connection.exec_driver_sql(query("dead_lock"), {"ids": ours(ids)})
    deaths: dict[MessageId, _Death] = {outbox_id: _Death(*rest) for outbox_id, *rest in rows}
    rows = connection.exec_driver_sql(query("foreign_lock"), foreign(ids))
    return deaths | {name_of(source, outbox_id): _Death(*rest) for source, outbox_id, *rest in rows}


def _deaths(dead: Mapping[MessageId, _Death], ids: Sequence[MessageId]) -> dict[str, Any]:
    """What is noted with the act of these deaths, for the messages' history.

    When, after how many attempts, and with which error each died.
    """
    errors: dict[tuple[str | None, str | None], int] = {}
    died = {}
    for name in ids:
        death = dead[name]
        number = errors.setdefault((death.error_code, death.error), len(errors))
        died[str(name)] = [death.at, death.attempts, number]
    return {"died": died, "errors": list(errors)}


def _send_again(
    connection: Connection,
    ids: list[MessageId],
    dead: Mapping[MessageId, _Death],
    payload: str | None = None,
) -> None:
    if ids:
        given = {
            "ids": ours(ids),
            "bodies": [dead[one].body for one in ours(ids)],
            "payload": payload,
        }
        if payload is None:
            _refuse_erased(connection, {dead[one].body: one for one in ours(ids)})
        rows = connection.exec_driver_sql(query("dead_replay"), given).all()
        if len(rows) != len(ours(ids)):
            lost = min(set(ours(ids)) - {row[0] for row in rows})
            raise StreamsError(
                f"message {lost} has lost its outbox row and cannot be replayed: nothing was done"
            )
        connection.exec_driver_sql(query("foreign_replay"), foreign(ids))


def _send_what_can(
    connection: Connection, ids: Sequence[MessageId], dead: Mapping[MessageId, _Death]
) -> list[MessageId]:
    """Send those again that have something to send, and say which."""
    given = {"ids": ours(ids), "bodies": [dead[one].body for one in ours(ids)]}
    able = set(connection.exec_driver_sql(query("replayable_among"), given).scalars())
    chosen = [one for one in ids if not isinstance(one, int) or one in able]
    _send_again(connection, chosen, dead)
    return chosen


def _refuse_erased(connection: Connection, messages: Mapping[int | None, MessageId]) -> None:
    rows = connection.exec_driver_sql(query("erased_among"), {"ids": list(messages)}).all()
    if rows:
        raise UsageError(
            f"message {messages[rows[0][0]]} was erased and cannot be replayed: nothing was done"
        )


class _Letter(NamedTuple):
    """The text of a dead message that counts.

    `row` is the outbox row that holds it, None for another system's message. `key` is None where
    nobody knows the right one.
    """

    text: str
    event: EventType
    key: str | None
    row: int | None


def _letter(
    connection: Connection, name: MessageId, registry: Registry
) -> tuple[dict[MessageId, _Death], _Letter]:
    """A dead message, locked; NotDead when it is none, or has no text any more."""
    dead = _locked(connection, [name])
    if not dead:
        raise NotDead(f"message {name} is not dead: nothing was done")
    source, outbox_id = parts_of(name)
    given = {"source": source, "outbox_id": outbox_id, "body": dead[name].body}
    statement = query("foreign_payload" if source else "dead_payload")
    stored = connection.exec_driver_sql(statement, given).mappings().one_or_none()
    if stored is None or stored["payload"] is None:
        raise NotDead(f"message {name} has no text any more: nothing was done")
    text, event = stored["payload"], _agent(stored["biz_type"], registry).event
    key = envelope.conversation(text, event) if source else stored["key"]
    return dead, _Letter(text, event, key, None if source else stored["id"])


def _agent(biz_type: str, registry: Registry) -> Agent:
    agent = registry.agents.get(biz_type)
    if agent is None:
        raise UsageError(
            f"unknown biz_type {biz_type!r:.80}: expected one of"
            f" {', '.join(sorted(registry.agents))}"
        )
    return agent


def _checked(text: bytes, event: EventType, key: str | None, max_bytes: int) -> tuple[str, str]:
    """(key, payload as it will be stored); any key where nobody knows the right one."""
    try:
        new_key, payload = codec.encode(codec.decode(text, event.payload), event, max_bytes)
    except StreamsError as error:
        raise UsageError(f"the edited payload cannot be taken: {error}") from None
    if key is not None and new_key != key:
        raise UsageError(
            f"the edited payload's {event.key!r} is {new_key!r:.80}, expected {key!r:.80}"
        )
    return new_key, payload
