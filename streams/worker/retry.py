"""Work the open messages of conversations whose turn has come: the head when it is due, then those parked behind it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from streams.worker.decode import Incoming
from streams.worker.origin import Origin
from streams.worker.transaction import Transaction

OPEN_BYTES = 1_000_000  # of payloads read at once, as they are stored: compressed


@dataclass(frozen=True, slots=True)
class Head:
    """The message a conversation waits for; `due` is epoch seconds, None when only an operator or a record moves it."""

    key: str
    partition: int
    outbox_id: int
    status: str
    attempts: int
    code: str | None
    due: float | None

    @classmethod
    def of(cls, row: Sequence[Any]) -> Head:
        """From a row of the named queries `heads` and `all_heads`: a parked head is due at once."""
        key, partition, outbox_id, status, attempts, code, next_retry_at = row
        due = {"retrying": next_retry_at, "parked": 0.0}.get(status)
        return cls(key, partition, outbox_id, status, attempts, code, due)


async def work_open(
    transaction: Transaction,
    topic: str,
    partition: int,
    keys: Sequence[str],
    most: int,
) -> None:
    """Work up to `most` due messages of these conversations of one partition, each conversation in its order."""
    await transaction.lock([partition])
    limit = max(1, most // max(1, len(keys)))
    asked = {"topic": topic, "keys": orjson.dumps(list(keys)).decode(), "most": limit, "bytes": OPEN_BYTES}
    rows = await transaction.execute("open_rows", **asked)
    turns = _due(rows, partition, transaction.origin)
    if not turns:
        return
    taken = await transaction.reclaim(turns)
    mine = [one for one, _ in turns if one.outbox_id in taken]
    transaction.outcome.woken |= {(partition, one.key) for one in mine}
    await transaction.apply(mine)


def _due(rows: Iterable[tuple[Any, ...]], partition: int, origin: Origin) -> list[tuple[Incoming, str]]:
    """(message, its status) of what may be worked now; a conversation stops where its next message has to wait."""
    turns: list[tuple[Incoming, str]] = []
    stopped: set[str] = set()
    for outbox_id, key, status, attempts, due, _, offset, biz_type, payload, created_at in rows:
        if key in stopped:
            continue
        if not (status == "parked" or (status == "retrying" and due)):
            stopped.add(key)
            continue
        one = Incoming(outbox_id, outbox_id, partition, offset, key, biz_type, None)
        origin.fill(one, (outbox_id, biz_type, key, payload, created_at), attempts)
        turns.append((one, status))
    return turns
