"""The open messages of conversations that are woken: the first one, then those behind it."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from streams.codec import Unreadable
from streams.worker.delivery import UNKNOWN, Delivery
from streams.worker.failure.classify import describe
from streams.worker.run.attempt import Attempt, Outcome
from streams.worker.run.decide import waited
from streams.worker.run.origin import Origin, load
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
    heads = await _open(attempt, keys, 1, partition)
    again = [(delivery, status) for delivery, status in heads if status == "retrying"]
    still_waiting = await _work(attempt, again)
    failed_before = {delivery.key for delivery, _ in again}
    for rest, count in (
        ([delivery.key for delivery, _ in heads if delivery.key not in failed_before], limit),
        (sorted(failed_before - still_waiting), limit - 1),
    ):
        if rest and count:
            await _work(attempt, await _open(attempt, rest, count, partition))
    return attempt.outcome


async def _open(
    attempt: Attempt, keys: Sequence[str], most: int, partition: int
) -> list[tuple[Delivery, str]]:
    """(message, its status) of the first so many of each conversation that may be worked now."""
    transaction = attempt.transaction
    line = await transaction.open_line(keys, most)
    condemned = await attempt.loading(line, 0)
    rows = await transaction.open_rows(line, condemned)
    known = attempt.history.known_failures
    failures = {outbox_id: known[outbox_id] for outbox_id in condemned}
    return _due(rows, partition, transaction.origin, failures)


async def _work(attempt: Attempt, turns: Sequence[tuple[Delivery, str]]) -> set[str]:
    """Try these; the conversations that wait for one of them."""
    if not turns:
        return set()
    reclaimed = await reclaim(attempt, turns)
    ours = [delivery for delivery, _ in turns if delivery.outbox_id in reclaimed]
    return {fate.key for fate in await handle(attempt, ours) if fate.open}


def _due(
    rows: Iterable[tuple[Any, ...]],
    partition: int,
    origin: Origin,
    condemned: Mapping[int, Exception],
) -> list[tuple[Delivery, str]]:
    """(message, its status) of what may be worked now.

    A conversation stops where its next message has to wait, or is in another partition, whose lock
    is not held here: its owner is woken for it. One that is `condemned` cannot be read.
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
        delivered,
        offset,
        biz_type,
        payload,
        created_ms,
    ) in rows:
        if delivered not in (partition, None):
            stopped.add(key)
        if key in stopped:
            continue
        delivery = Delivery(outbox_id, outbox_id, partition, offset, key, biz_type, None)
        load(origin, delivery, (outbox_id, biz_type, key, payload, created_ms), attempts)
        if (failure := condemned.get(outbox_id)) is not None:
            code, reason = describe(failure)
            delivery.message, delivery.fault = None, Unreadable(reason, code=code)
        delivery.waited = waited(status, due, code, since)
        its_turn = due or (code == UNKNOWN and not delivery.unknown)
        if status == "parked" or (status == "retrying" and its_turn):
            turns.append((delivery, status))
        else:
            stopped.add(key)
    return turns
