"""Decide the records of runs: what is new is claimed, what waits is parked, what was seen before keeps its fate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from streams.worker.failure.doubt import Doubt, Leaf
from streams.worker.failure.isolate import Guilty
from streams.worker.run.decide import (
    NO_ROW,
    OTHER_KEY,
    OTHER_ROOT,
    OTHER_TIME,
    TERMINAL,
    Decision,
    Fact,
    Named,
    check_times,
    decide,
    stranger,
    waited,
)
from streams.worker.run.decode import UNKNOWN, Incoming, Rejected
from streams.worker.run.transaction import NotYetVisible, Transaction

# Runs for which conversations are looked up at once, because some waited a short time ago.
KEYED_RUNS = 64
WAITS = ("retrying", "parked")


async def work_records(
    transaction: Transaction, found: Sequence[Incoming], rejected: Sequence[Rejected], partitions: Iterable[int]
) -> None:
    """Work every record of these partitions of the transaction's topic.

    One round trip before the handlers while nothing of the topic is open and every message is new; two while the only others
    are those that have to wait.
    """
    odd = [one for one in found if one.fault is not None or one.resend or one.doubtful]
    plain = _apart(found, odd)
    blocked: set[str] | None = None
    parked: set[int] = set()
    if transaction.memory.waits[transaction.topic] > 0 and not odd:
        blocked = await transaction.lock_and_look(partitions, plain)
        _remember(transaction, bool(blocked))
        free, behind = [one for one in plain if one.key not in blocked], [one for one in plain if one.key in blocked]
        claimed, parked = await transaction.claim_and_open(free, behind)
    else:
        claimed = await transaction.lock_and_claim(partitions, plain)
    turns: Sequence[Incoming] = [one for one in plain if one.outbox_id in claimed] if claimed else []
    if len(turns) + len(parked) < len(found):
        done = {id(one) for one in turns} | {id(one) for one in plain if one.outbox_id in parked}
        left = [one for one in found if id(one) not in done]
        turns = await _decide(transaction, found, odd, left, turns, blocked)
    await transaction.reject(rejected)
    await transaction.apply(turns)
    if any(one.status in WAITS for one in transaction.outcome.asides):
        _remember(transaction, True)


async def _decide(
    transaction: Transaction,
    found: Sequence[Incoming],
    odd: Sequence[Incoming],
    left: Sequence[Incoming],
    claimed: Sequence[Incoming],
    blocked: set[str] | None,
) -> list[Incoming]:
    """Everything that is not simply new or waiting; returns what this transaction has claimed, in record order.

    `blocked` are the conversations that wait, None while that is not known.
    """
    left, strangers = await _strangers(transaction, left)
    odd = [one for one in odd if id(one) not in strangers]
    taken = {id(one) for one in claimed}
    facts = await _facts(transaction, odd)
    if blocked is None:
        blocked = await transaction.open_keys(left)
        _remember(transaction, bool(blocked))
        free = [one for one in _apart(left, odd) if one.key not in blocked]
        new = await transaction.claim(free)
        taken |= {id(one) for one in free if one.outbox_id in new}
        left = [one for one in left if id(one) not in taken]
    # A message may come by its own record and by one that sends it again: each is filled, for either may be the first.
    filled = {id(one) for one in odd}
    facts |= await _facts(transaction, [one for one in left if id(one) not in filled])
    await _wait_for_visibility(transaction, [one for one, fact in facts.items() if not fact.known])
    decided = [
        (one, decide(one.record_id, one.outbox_id, facts[one.outbox_id], blocked=one.key in blocked)) for one in left
    ]
    await transaction.open([one for one, what in decided if what is Decision.PARK])
    claimed_now = await transaction.claim([one for one, what in decided if what is Decision.NEW])
    again = await _again(transaction, [(one, facts[one.outbox_id]) for one, what in decided if what is Decision.AGAIN])
    queued = [one for one, what in decided if what is Decision.QUEUE]
    await transaction.set_aside([(one, Guilty(one.outbox_id, one.key, "parked")) for one in queued])
    lost = [Rejected(one.partition, one.offset, NO_ROW) for one, what in decided if what is Decision.REJECT]
    lost += [Rejected(one.partition, one.offset, why) for one, why in strangers.values() if why is not None]
    await transaction.reject(lost)
    now = claimed_now | again
    taken |= {id(one) for one, what in decided if what in (Decision.NEW, Decision.AGAIN) and one.outbox_id in now}
    turns: dict[int, Incoming] = {}
    for one in found:
        if id(one) in taken:
            turns.setdefault(one.outbox_id, one)
    outcome = transaction.outcome
    outcome.skipped += len(found) - len(turns) - len(lost) - len(outcome.asides)
    return list(turns.values())


async def _strangers(
    transaction: Transaction, some: Sequence[Incoming]
) -> tuple[list[Incoming], dict[int, tuple[Incoming, str | None]]]:
    """Which of these records are their outbox rows', and of the others why not: None when they are skipped.

    What has no row yet is waited for.
    """
    if not transaction.origin.has_rows or not some:
        return list(some), {}
    ids = {one.record_id for one in some}
    found = await transaction.execute("identities", ids=list(ids), first=min(ids), last=max(ids))
    rows = {row[0]: Named(*row[1:]) for row in found}
    # A replay changes the state in the transaction that writes the row to send again: not seen before that row is.
    await _wait_for_visibility(transaction, [one for one in ids if one not in rows])
    reasons = {id(one): _reason(one, transaction.topic, rows.get(one.record_id)) for one in some}
    mine = [one for one in some if reasons[id(one)] is None]
    if len(mine) == len(some):
        return mine, {}
    others = [one for one in some if reasons[id(one)] is not None]
    facts = await transaction.execute("facts", ids=list({one.outbox_id for one in others}))
    settled = {fact[0] for fact in facts if fact[2] in TERMINAL}
    off = [
        (one.time, rows[one.record_id].created_ms)
        for one in others
        if reasons[id(one)] == OTHER_TIME and one.outbox_id not in settled
    ]
    check_times(off, another_life=any(reasons[id(one)] in (OTHER_KEY, OTHER_ROOT) for one in others))
    return mine, {id(one): (one, None if one.outbox_id in settled else reasons[id(one)]) for one in others}


def _reason(one: Incoming, topic: str, row: Named | None) -> str | None:
    if row is None:
        return NO_ROW
    return stranger(Named(one.key, one.time, None, topic), one.outbox_id, row, one.record_id)


def _remember(transaction: Transaction, blocked: bool) -> None:
    """Whether the next runs had better look for conversations that wait."""
    waits = transaction.memory.waits
    waits[transaction.topic] = KEYED_RUNS if blocked else max(0, waits[transaction.topic] - 1)


async def _wait_for_visibility(transaction: Transaction, unknown: Sequence[int]) -> None:
    """A commit is in the log, and so with a relay, before other sessions see it: raises NotYetVisible while that may be so.

    An id that was never drawn is forged.  Any other may be that of a row in commit: of whoever may be writing it when it is
    first missed, all have to be seen ended, or idle, which nobody is who has committed.  Only what is missing in a snapshot
    taken after that has no row.  A commit that waits for a standby is waited for like any outage, everything else
    VISIBLE_SECONDS: a row that comes to light later has no fate, and is sent again.
    """
    waiting = transaction.memory.invisible
    undecided = [one for one in unknown if one not in waiting or not waiting[one].decided]
    if undecided:
        leaves = [Leaf(*row) for row in await transaction.execute("row_writers", ids=undecided)]
        drawn = [one for one in undecided if one <= leaves[0].newest]
        for one in drawn:
            waiting.setdefault(one, Doubt()).look(next((leaf for leaf in leaves if leaf.holds(one)), None))
        if drawn:
            standby = any(waiting[one].standby for one in drawn)
            why = "a commit waits for a standby" if standby else "transactions may be committing"
            writers = {writer for one in drawn for writer in waiting[one].writers or ()}
            raise NotYetVisible(f"{len(drawn)} outbox rows are not visible, {why} ({len(writers)})")
    for one in set(unknown):
        waiting.pop(one, None)


async def _facts(transaction: Transaction, some: Sequence[Incoming]) -> dict[int, Fact]:
    """What is known of these messages; those that may move are read anew from their outbox rows."""
    if not some:
        return {}
    ids = list({one.outbox_id for one in some})
    facts = {row[0]: Fact(*row[1:]) for row in await transaction.execute("facts", ids=ids)}
    movable = [one for one in some if _may_move(one, facts[one.outbox_id])]
    if movable:
        ids = list({one.outbox_id for one in movable})
        rows = {row[0]: row for row in await transaction.execute("payloads", ids=ids)}
        for one in movable:
            # Of a message without an outbox row nothing is stored before it is set aside: the record is all there is.
            if row := rows.get(one.outbox_id):
                fact = facts[one.outbox_id]
                transaction.origin.fill(one, row, fact.attempts or 0)
                one.waited = waited(fact.status, fact.due, fact.code, fact.since)
                if fact.code == UNKNOWN and not one.unknown:
                    # It waited for somebody who knows its biz_type.
                    facts[one.outbox_id] = fact._replace(due=True)
    return facts


async def _again(transaction: Transaction, turns: Sequence[tuple[Incoming, Fact]]) -> set[int]:
    """Open messages whose turn it is."""
    if not turns:
        return set()
    taken = await transaction.reclaim([(one, cast("str", fact.status)) for one, fact in turns])
    transaction.outcome.woken |= {(one.partition, one.key) for one, _ in turns if one.outbox_id in taken}
    return taken


def _apart(some: Sequence[Incoming], odd: Sequence[Incoming]) -> list[Incoming]:
    """Those whose conversations have no odd record: they can be claimed by themselves, in any order to the odd ones."""
    if not odd:
        return list(some)
    keys = {one.key for one in odd}
    # A record without a key may be of any conversation.
    return [] if "" in keys else [one for one in some if one.key not in keys]


def _may_move(one: Incoming, fact: Fact) -> bool:
    """Whether the outbox rows count, not the record: it is broken or resent, or its message is open."""
    return (
        fact.known and fact.status not in TERMINAL and (one.fault is not None or one.resend or fact.status is not None)
    )
