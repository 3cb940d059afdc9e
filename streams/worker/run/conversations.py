"""Work the open messages of conversations whose turn has come: the head when it is due, then those parked behind it."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from streams.worker.run.decide import waited
from streams.worker.run.decode import UNKNOWN, Incoming
from streams.worker.run.origin import Origin
from streams.worker.run.transaction import Transaction

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
    def of(cls, row: Sequence[Any], known: Container[str]) -> Head:
        """From a row of the named queries `heads` and `all_heads`, for a worker to which these biz_types are known.

        A parked head is due at once, and so is one that waited for somebody who knows its biz_type.
        """
        key, partition, outbox_id, status, attempts, code, next_retry_at, awaited = row
        due = {"retrying": 0.0 if awaited in known else next_retry_at, "parked": 0.0}.get(status)
        return cls(key, partition, outbox_id, status, attempts, code, due)


async def work_open(
    transaction: Transaction,
    topic: str,
    partition: int,
    keys: Sequence[str],
    most: int,
) -> None:
    """Work up to `most` due messages of these conversations of one partition, each conversation in its order.

    Those that failed before go first and by themselves: most fail again, and what is parked behind them is not touched then.
    """
    await transaction.lock([partition])
    limit = max(1, most // max(1, len(keys)))
    heads = _due(await _open(transaction, topic, keys, 1), partition, transaction.origin)
    again = [(one, status) for one, status in heads if status == "retrying"]
    waiting = await _work(transaction, partition, again)
    failed_before = {one.key for one, _ in again}
    for some, count in (
        ([one.key for one, _ in heads if one.key not in failed_before], limit),
        (sorted(failed_before - waiting), limit - 1),
    ):
        if some and count:
            rows = await _open(transaction, topic, some, count)
            await _work(transaction, partition, _due(rows, partition, transaction.origin))


async def _open(transaction: Transaction, topic: str, keys: Sequence[str], most: int) -> list[tuple[Any, ...]]:
    """The first open messages of each of these conversations."""
    asked = {"topic": topic, "keys": orjson.dumps(list(keys)).decode(), "most": most, "bytes": OPEN_BYTES}
    return await transaction.execute("open_rows", **asked)


async def _work(transaction: Transaction, partition: int, turns: Sequence[tuple[Incoming, str]]) -> set[str]:
    """Try these; the conversations that wait for one of them."""
    if not turns:
        return set()
    taken = await transaction.reclaim(turns)
    mine = [one for one, _ in turns if one.outbox_id in taken]
    transaction.outcome.woken |= {(partition, one.key) for one in mine}
    return {one.key for one in await transaction.apply(mine) if one.open}


def _due(rows: Iterable[tuple[Any, ...]], partition: int, origin: Origin) -> list[tuple[Incoming, str]]:
    """(message, its status) of what may be worked now; a conversation stops where its next message has to wait."""
    turns: list[tuple[Incoming, str]] = []
    stopped: set[str] = set()
    for outbox_id, key, status, attempts, due, code, since, _, offset, biz_type, payload, created_at in rows:
        if key in stopped:
            continue
        one = Incoming(outbox_id, outbox_id, partition, offset, key, biz_type, None)
        origin.fill(one, (outbox_id, biz_type, key, payload, created_at), attempts)
        one.waited = waited(status, due, code, since)
        if status == "parked" or (status == "retrying" and (due or (code == UNKNOWN and not one.unknown))):
            turns.append((one, status))
        else:
            stopped.add(key)
    return turns
