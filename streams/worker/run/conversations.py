"""The open messages of conversations that are woken: the first one, then those behind it."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Any

from streams.worker.delivery import UNKNOWN, Delivery
from streams.worker.run.attempt import Attempt, Outcome
from streams.worker.run.decide import waited
from streams.worker.run.origin import Origin
from streams.worker.run.pipeline import handle, reclaim
from streams.worker.set_aside import SetAside


def head_of(row: Sequence[Any], awaited: Container[int] = ()) -> SetAside:
    """The message a conversation waits for, from a row of `heads` or `all_heads`.

    Those are named queries. A parked head is due at once, and so is one that is `awaited`: it
    waited for somebody who knows its biz_type.
    """
    key, partition, outbox_id, status, attempts, code, next_retry_at = row
    due = {"retrying": 0.0 if outbox_id in awaited else next_retry_at, "parked": 0.0}.get(status)
    return SetAside(outbox_id, key, partition, status, attempts, code, due=due)


async def work_conversations(
    attempt: Attempt, *, partition: int, keys: Sequence[str], most: int
) -> Outcome:
    """Work up to `most` due messages of these conversations of one partition.

    Each conversation is worked in its order. Those that failed before go first and by themselves:
    most fail again, and what is parked behind them is not touched then.
    """
    transaction = attempt.transaction
    await transaction.lock([partition])
    limit = max(1, most // max(1, len(keys)))
    heads = _due(await transaction.open_rows(keys, 1), partition, transaction.origin)
    again = [(delivery, status) for delivery, status in heads if status == "retrying"]
    still_waiting = await _work(attempt, again)
    failed_before = {delivery.key for delivery, _ in again}
    for rest, count in (
        ([delivery.key for delivery, _ in heads if delivery.key not in failed_before], limit),
        (sorted(failed_before - still_waiting), limit - 1),
    ):
        if rest and count:
            rows = await transaction.open_rows(rest, count)
            await _work(attempt, _due(rows, partition, transaction.origin))
    return attempt.outcome


async def _work(attempt: Attempt, turns: Sequence[tuple[Delivery, str]]) -> set[str]:
    """Try these; the conversations that wait for one of them."""
    if not turns:
        return set()
    reclaimed = await reclaim(attempt, turns)
    ours = [delivery for delivery, _ in turns if delivery.outbox_id in reclaimed]
    return {fate.key for fate in await handle(attempt, ours) if fate.open}


def _due(
    rows: Iterable[tuple[Any, ...]], partition: int, origin: Origin
) -> list[tuple[Delivery, str]]:
    """(message, its status) of what may be worked now.

    A conversation stops where its next message has to wait.
    """
    turns: list[tuple[Delivery, str]] = []
    stopped: set[str] = set()
    for (
        outbox_id,
        key,
        status,
        attempts,
        due,
        code,
        since,
        _,
        offset,
        biz_type,
        payload,
        created_at,
    ) in rows:
        if key in stopped:
            continue
        delivery = Delivery(outbox_id, outbox_id, partition, offset, key, biz_type, None)
        origin.load_stored(delivery, (outbox_id, biz_type, key, payload, created_at), attempts)
        delivery.waited = waited(status, due, code, since)
        its_turn = due or (code == UNKNOWN and not delivery.unknown)
        if status == "parked" or (status == "retrying" and its_turn):
            turns.append((delivery, status))
        else:
            stopped.add(key)
    return turns
