"""Replay and discard: bounded transactions in order, each with its row in `outbox_actions`.

A replay is a new outbox row that names its root, so the relay publishes it like any other; the root's state says
`replaying` and which row counts, and a worker takes no other.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection

from db import query
from streams import codec
from streams.desk.choice import Choice, NotDead, in_order
from streams.errors import StreamsError, UsageError
from streams.registry import Registry

# Messages a transaction: it holds their row locks, and a worker may wait for one of them.
BATCH = 1000
# What failed again after so many replays needs another cure: `force` overrides.
MOST_REPLAYS = 3


class Circle(StreamsError):
    """A message was replayed too often already: nothing was done."""


@dataclass(frozen=True, slots=True)
class Operator:
    """Who acts, and why."""

    who: str
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What one committed transaction did: `circling` were replayed too often, `gone` were no longer dead."""

    done: int
    circling: int = 0
    gone: int = 0

    @property
    def worked(self) -> int:
        """How many messages of the plan this step covers."""
        return self.done + self.circling + self.gone


def replay(
    connection: Connection,
    ids: Sequence[int],
    operator: Operator,
    choice: Choice,
    *,
    force: bool = False,
    rate: float | None = None,
) -> Iterator[Step]:
    """Send these dead messages again, in this order (`in_order` gives it), at most `rate` a second.

    Each step is committed when it is yielded. Messages replayed MOST_REPLAYS times are left dead unless `force`; one
    that is circling alone is a Circle.
    """
    for batch in _paced(ids, rate):
        with connection.begin():
            dead = _lock(connection, batch)
            chosen = [one for one in batch if one in dead and (force or dead[one] < MOST_REPLAYS)]
            circling = len(dead) - len(chosen)
            if circling == len(ids) == 1:
                raise Circle(
                    f"message {ids[0]} was replayed {dead[ids[0]]} times already and died again:"
                    " mend the cause, then --force"
                )
            _send_again(connection, chosen)
            note(connection, operator, "replay", chosen, {"filter": choice.said(), "force": force})
        yield Step(len(chosen), circling, len(batch) - len(dead))


def discard(
    connection: Connection, ids: Sequence[int], operator: Operator, choice: Choice, *, rate: float | None = None
) -> Iterator[Step]:
    """Give these dead messages up for good; each step is committed when it is yielded."""
    for batch in _paced(ids, rate):
        with connection.begin():
            chosen = list(_lock(connection, batch))
            connection.exec_driver_sql(query("dead_discard"), {"ids": chosen})
            note(connection, operator, "discard", chosen, {"filter": choice.said()})
        yield Step(len(chosen), gone=len(batch) - len(chosen))


def edit(
    connection: Connection, outbox_id: int, text: bytes, registry: Registry, max_bytes: int, operator: Operator
) -> None:
    """Replay one dead message with another payload; the old one stays in its outbox row.

    UsageError says what is wrong with the payload, or that it belongs to another conversation.
    """
    with connection.begin():
        if not _lock(connection, [outbox_id]):
            raise NotDead(f"message {outbox_id} is not dead: nothing was done")
        parameters = {"outbox_id": outbox_id}
        replaced, _, biz_type, key = connection.exec_driver_sql(query("dead_payload"), parameters).one()
        payload = _checked(text, biz_type, key, registry, max_bytes)
        _send_again(connection, [outbox_id], payload)
        note(connection, operator, "replay", [outbox_id], {"edited": True, "replaced": replaced})


def plan(connection: Connection, choice: Choice) -> list[int]:
    """The messages an act on this choice would work, in its order; leaves the connection in no transaction."""
    with connection.begin():
        return in_order(connection, choice)


def note(connection: Connection, operator: Operator, act: str, ids: list[int], about: dict[str, Any]) -> None:
    """Write an act on these messages down, in the transaction that does it; nothing when there are none."""
    if not ids:
        return
    what = {"count": len(ids), "ids": ids} | {name: value for name, value in about.items() if value}
    one = ids[0] if len(ids) == 1 else None
    note = {"who": operator.who, "act": act, "outbox_id": one, "what": orjson.dumps(what).decode(), "why": operator.why}
    connection.exec_driver_sql(query("note_action"), note)


def _paced(ids: Sequence[int], rate: float | None) -> Iterator[Sequence[int]]:
    """Slices of the plan, each when the rate lets it go."""
    size = BATCH if rate is None else max(1, min(BATCH, int(rate)))
    began = time.monotonic()
    for start in range(0, len(ids), size):
        if rate is not None:
            time.sleep(max(0.0, began + start / rate - time.monotonic()))
        yield ids[start : start + size]


def _lock(connection: Connection, ids: Sequence[int]) -> dict[int, int]:
    """Those still dead, with how often each was replayed."""
    rows = connection.exec_driver_sql(query("dead_lock"), {"ids": list(ids)})
    return {row[0]: row[1] for row in rows}


def _send_again(connection: Connection, ids: list[int], payload: str | None = None) -> None:
    if ids:
        rows = connection.exec_driver_sql(query("dead_replay"), {"ids": ids, "payload": payload}).all()
        if len(rows) != len(ids):
            lost = min(set(ids) - {row[0] for row in rows})
            raise StreamsError(f"message {lost} has lost its outbox row and cannot be replayed: nothing was done")


def _checked(text: bytes, biz_type: str, key: str, registry: Registry, max_bytes: int) -> str:
    """The payload as it will be stored."""
    agent = registry.agents.get(biz_type)
    if agent is None:
        raise UsageError(f"unknown biz_type {biz_type!r:.80}: expected one of {', '.join(sorted(registry.agents))}")
    try:
        found, payload = codec.encode(codec.decode(text, agent.event.payload), agent.event, max_bytes)
    except StreamsError as error:
        raise UsageError(f"the edited payload cannot be taken: {error}") from None
    if found != key:
        raise UsageError(f"the edited payload's {agent.event.key!r} is {found!r:.80}, expected {key!r:.80}")
    return payload
