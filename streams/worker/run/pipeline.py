"""One run in one transaction: lock, claim, judge, decide, handle, set aside; the caller commits.

    lock_and_claim      the partitions are ours, and what is new is claimed, in one round trip
    judge, look_up      only what was not simply new: whose is the record, what is known of its
                        message?
    decide              pure: parked, new after all, open and its turn, queued, rejected, or skipped
    open, claim, ...    as decided
    handle              each biz_type's handler gets its batch; what fails is set aside

A run of 500 new messages takes the first line and the last one. When one of them was delivered
before, nothing is claimed at once, then 499 one by one; the last one is judged, its fact says
`consumed`, and it is skipped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from streams.events import batches
from streams.worker.delivery import UNKNOWN, Delivery, Rejected, messages_of, unclear_of
from streams.worker.failure.classify import TransactionEnded, describe, storable
from streams.worker.failure.doubt import Doubt
from streams.worker.failure.isolate import Isolation
from streams.worker.failure.strategy import Strategy
from streams.worker.run.attempt import Attempt, Outcome
from streams.worker.run.decide import (
    NO_ROW,
    OTHER_KEY,
    OTHER_ROOT,
    OTHER_TIME,
    TERMINAL,
    Fact,
    Named,
    check_times,
    decide,
    independent_of,
    may_move,
    stranger,
    waited,
)
from streams.worker.run.origin import load
from streams.worker.run.transaction import Fates, NotYetVisible
from streams.worker.run.unreadable import fate_on_arrival, in_line, patience_with, readable
from streams.worker.set_aside import SetAside, parked

logger = logging.getLogger(__name__)

# Runs for which conversations are looked up at once, because some waited a short time ago.
KEYED_RUNS = 64
WAITS = ("retrying", "parked")


async def work_run(
    attempt: Attempt, *, partitions: Collection[int], records: Sequence[Any]
) -> Outcome:
    """Give each of these records of the topic its fate.

    One round trip before the handlers while nothing of the topic is open and every message is new;
    two while the only others are those that have to wait.
    """
    transaction, outcome = attempt.transaction, attempt.outcome
    # Read in each attempt: deciding loads messages from outbox rows.
    deliveries, rejected = transaction.origin.read(records, await attempt.reading(records))
    unclear = unclear_of(deliveries)
    fresh = independent_of(unclear, deliveries)

    turns: Sequence[Delivery]
    opened: Fates = []
    waiting: set[str] | None = None
    probe = attempt.history.probes[transaction.topic]
    if probe.slow and unclear:
        # What waits is asked for by conversation, below.
        await transaction.lock(partitions)
        turns = []
    elif not probe.slow and (unclear or not attempt.history.waits[transaction.topic]):
        turns = await transaction.lock_and_claim(partitions, fresh)
        probe.took(transaction.probe_seconds)
    else:
        waiting = await transaction.lock_and_ask(partitions, fresh)
        _note_waiting(attempt, bool(waiting))
        free = [delivery for delivery in fresh if delivery.key not in waiting]
        behind = [delivery for delivery in fresh if delivery.key in waiting]
        turns, opened = await transaction.claim_and_open(free, _on_arrival(attempt, behind))
        outcome.set_aside += [fate for _, fate in opened]
        outcome.count_aside(opened)

    if len(turns) + len(opened) < len(deliveries):
        settled = {*turns, *(delivery for delivery, _ in opened)}
        left = [delivery for delivery in deliveries if delivery not in settled]
        turns, lost = await work_left(attempt, deliveries, turns, left, unclear, waiting)
        rejected += lost

    await transaction.reject(rejected)
    outcome.rejected += rejected
    await handle(attempt, turns)
    if any(fate.status in WAITS for fate in outcome.set_aside):
        _note_waiting(attempt, True)
    return outcome


async def work_left(
    attempt: Attempt,
    deliveries: Sequence[Delivery],
    claimed: Iterable[Delivery],
    left: Sequence[Delivery],
    unclear: Sequence[Delivery],
    waiting: set[str] | None,
) -> tuple[list[Delivery], list[Rejected]]:
    """Work what is left of the deliveries, as it is not simply new.

    Returns what is claimed in all, and what is rejected.

    `waiting` are the conversations that wait, None while that is not known.
    """
    transaction, outcome = attempt.transaction, attempt.outcome
    taken = set(claimed)
    left, strangers = await judge(attempt, left)
    unclear = [delivery for delivery in unclear if delivery not in strangers]
    facts = await look_up(attempt, unclear)
    if waiting is None:
        waiting = await transaction.waiting_conversations(left)
        _note_waiting(attempt, bool(waiting))
        fresh = independent_of(unclear, left)
        taken.update(
            await transaction.claim([delivery for delivery in fresh if delivery.key not in waiting])
        )
        left = [delivery for delivery in left if delivery not in taken]
    # A message may come by its own record and by one that sends it again: each is loaded, for
    # either may be the first.
    loaded = set(unclear)
    facts |= await look_up(attempt, [delivery for delivery in left if delivery not in loaded])
    gone = await transaction.gone(
        [outbox_id for outbox_id, fact in facts.items() if not fact.known]
    )
    facts |= {outbox_id: Fact(known=True, status="consumed") for outbox_id in gone}
    await wait_for_visibility(
        attempt, [outbox_id for outbox_id, fact in facts.items() if not fact.known]
    )

    decisions = decide(left, facts, waiting)

    opened = await transaction.open(_on_arrival(attempt, decisions.parked))
    outcome.set_aside += [fate for _, fate in opened]
    outcome.count_aside(opened)
    taken.update(await transaction.claim(decisions.new))
    again = await reclaim(attempt, decisions.again)
    taken.update(delivery for delivery, _ in decisions.again if delivery.outbox_id in again)
    queued = [(delivery, parked(delivery)) for delivery in decisions.queued]
    outcome.set_aside += await transaction.set_aside(queued)
    outcome.count_aside(queued)
    rejected = decisions.rejected + [
        Rejected(delivery.partition, delivery.offset, reason)
        for delivery, reason in strangers.items()
        if reason
    ]

    turns: dict[int, Delivery] = {}
    for delivery in deliveries:
        if delivery in taken:
            turns.setdefault(delivery.outbox_id, delivery)
    outcome.skipped += len(deliveries) - len(turns) - len(rejected) - len(outcome.set_aside)
    return list(turns.values()), rejected


async def judge(
    attempt: Attempt, deliveries: Sequence[Delivery]
) -> tuple[Sequence[Delivery], dict[Delivery, str | None]]:
    """Those of these records that are their outbox rows'.

    And why each other one is not, None where it is skipped.

    What has no row yet is waited for.
    """
    transaction = attempt.transaction
    if not transaction.origin.has_rows or not deliveries:
        return deliveries, {}
    ids = {delivery.record_id for delivery in deliveries}
    rows = await transaction.identities(ids)
    missing = [row_id for row_id in ids if row_id not in rows]
    gone = await transaction.gone(missing)
    # A replay changes the state in the transaction that writes the row to send again: not seen
    # before that row is.
    await wait_for_visibility(attempt, [row_id for row_id in missing if row_id not in gone])
    reasons = {
        delivery: why_strange(delivery, transaction.topic, rows.get(delivery.record_id))
        for delivery in deliveries
    }
    strangers = {delivery: reason for delivery, reason in reasons.items() if reason is not None}
    if not strangers:
        return deliveries, {}
    facts = await transaction.facts({delivery.outbox_id for delivery in strangers})
    unsettled = {
        delivery: reason
        for delivery, reason in strangers.items()
        if facts[delivery.outbox_id].status not in TERMINAL and delivery.record_id not in gone
    }
    times = [
        (delivery.time, rows[delivery.record_id].created_ms)
        for delivery, reason in unsettled.items()
        if reason == OTHER_TIME
    ]
    check_times(
        times, another_life=any(reason in (OTHER_KEY, OTHER_ROOT) for reason in strangers.values())
    )
    own = [delivery for delivery in deliveries if delivery not in strangers]
    return own, {delivery: unsettled.get(delivery) for delivery in strangers}


async def look_up(attempt: Attempt, deliveries: Sequence[Delivery]) -> dict[int, Fact]:
    """What is known of these messages.

    Those that may move are read again, from their outbox rows.
    """
    if not deliveries:
        return {}
    transaction = attempt.transaction
    facts = await transaction.facts({delivery.outbox_id for delivery in deliveries})
    movable = [delivery for delivery in deliveries if may_move(delivery, facts[delivery.outbox_id])]
    bodies = {
        one: facts[one].source_id or one for one in {delivery.outbox_id for delivery in movable}
    }
    condemned = await attempt.loading(bodies, min([each.offset for each in movable], default=0))
    for outbox_id in condemned:
        del bodies[outbox_id]
    rows = await transaction.payloads(bodies) if bodies else {}
    for delivery in movable:
        # Of a message without an outbox row nothing is stored before it is set aside: the record is
        # all there is.
        if row := rows.get(delivery.outbox_id):
            fact = facts[delivery.outbox_id]
            load(transaction.origin, delivery, row, fact.attempts or 0)
            delivery.waited = waited(fact.status, fact.due, fact.code, fact.since)
            if fact.code == UNKNOWN and not delivery.unknown:
                # It waited for somebody who knows its biz_type.
                facts[delivery.outbox_id] = fact._replace(due=True)
    return facts


async def wait_for_visibility(attempt: Attempt, ids: Collection[int]) -> None:
    """Wait for rows that may be in commit: raises NotYetVisible while one of them may be.

    A commit is in the log, and so with a relay, before other sessions see it.

    An id that was never drawn is forged. Any other may be that of a row in commit: of whoever may
    be writing it when it is first missed, all have to be seen ended, or idle, which nobody is who
    has committed. Only what is missing in a snapshot taken after that has no row. A commit that
    waits for a standby is waited for like any outage, everything else VISIBLE_SECONDS: a row that
    comes to light later has no fate, and is sent again.
    """
    doubts = attempt.history.invisible
    undecided = [row_id for row_id in ids if row_id not in doubts or not doubts[row_id].decided]
    if undecided:
        leaves = await attempt.transaction.row_writers(undecided)
        drawn = [row_id for row_id in undecided if row_id <= leaves[0].newest]
        for row_id in drawn:
            doubt = doubts.setdefault(row_id, Doubt())
            doubt.look(next((leaf for leaf in leaves if leaf.holds(row_id)), None))
        if drawn:
            standby = any(doubts[row_id].standby for row_id in drawn)
            why = "a commit waits for a standby" if standby else "transactions may be committing"
            writers = {writer for row_id in drawn for writer in doubts[row_id].writers or ()}
            raise NotYetVisible(f"{len(drawn)} outbox rows are not visible, {why} ({len(writers)})")
    for row_id in set(ids):
        doubts.pop(row_id, None)


async def reclaim(attempt: Attempt, turns: Sequence[tuple[Delivery, str]]) -> set[int]:
    """Take open messages whose turn it is, each given with its status.

    Returns the ids of those that still had it.
    """
    reclaimed = await attempt.transaction.reclaim(turns)
    attempt.outcome.woken |= {
        (delivery.partition, delivery.key)
        for delivery, _ in turns
        if delivery.outbox_id in reclaimed
    }
    return reclaimed


async def handle(attempt: Attempt, turns: Sequence[Delivery]) -> list[SetAside]:
    """Call the handlers with what this transaction has claimed.

    What fails or cannot be read is set aside.
    """
    transaction, history, outcome = attempt.transaction, attempt.history, attempt.outcome
    ready, fates = await _sort_out(attempt, turns)
    by_type = batches(ready)
    if ready and attempt.trial is not None:
        await attempt.trial.begin(ready, history.known_failures)
    try:
        async with attempt.spans.handling(turns, transaction.execute):
            if attempt.strategy is Strategy.WHOLE:
                for biz_type, batch in by_type:
                    messages = messages_of(batch)
                    await attempt.caller.call(attempt.agents[biz_type], messages)
                    history.worked(biz_type, messages)
            elif ready:
                one_by_one = attempt.strategy is Strategy.SINGLE
                isolation = Isolation(
                    attempt.caller, attempt.savepoint, history, one_by_one=one_by_one
                )
                fates += await isolation.work(by_type, attempt.agents)
    except TransactionEnded as error:
        # What was claimed is committed, and no delivery will ask for it again; who has an effect
        # nobody can tell.
        logger.critical(
            "a handler ended the transaction of its run, the messages in it are dead",
            exc_info=error,
        )
        await transaction.lock({delivery.partition for delivery in turns})
        held = {name for name, agent in attempt.agents.items() if agent.on_dead == "hold"}
        fates = [_misused(each, error, hold=each.biz_type in held) for each in turns]
    if any(fate.attempts == 1 and fate.code is not None for fate in fates):
        history.failed[transaction.topic] = time.monotonic()
    outcome.consumed += len(turns) - len(fates)
    outcome.count_persisted(by_type, {fate.outbox_id for fate in fates})
    # `arrived` is drawn in this order: it has to be the order of the records.
    line = in_line(turns, {fate.outbox_id: fate for fate in fates}) if fates else []
    stored = await transaction.set_aside(line)
    outcome.set_aside += stored
    outcome.count_aside(line)
    return stored


async def _sort_out(
    attempt: Attempt, turns: Sequence[Delivery]
) -> tuple[Sequence[Delivery], list[SetAside]]:
    """What can be handed to handlers; and what cannot be read, with what waits behind it."""
    broken = [delivery for delivery in turns if delivery.message is None]
    if not broken:
        return turns, []
    return readable(turns, attempt.agents, await _patience(attempt, broken))


async def _patience(attempt: Attempt, turns: Sequence[Delivery]) -> Mapping[str, float]:
    """For how many seconds messages of each unknown biz_type wait for somebody who knows it."""
    unknown = {delivery.biz_type for delivery in turns if delivery.unknown}
    if not unknown:
        return {}
    transaction = attempt.transaction
    names = {storable(biz_type): biz_type for biz_type in unknown}
    retired = {
        names[name]: retired for name, retired in (await transaction.registered(names)).items()
    }
    return patience_with(
        unknown, retired, attempt.unknown_seconds, foreign=bool(transaction.origin.source)
    )


def why_strange(delivery: Delivery, topic: str, row: Named | None) -> str | None:
    """Why the record is not that of the outbox row which it names; None when it is."""
    if row is None:
        return NO_ROW
    record = Named(delivery.key, delivery.time, None, topic)
    return stranger(record, delivery.outbox_id, row, delivery.record_id)


def _on_arrival(attempt: Attempt, deliveries: Iterable[Delivery]) -> Fates:
    return [(delivery, fate_on_arrival(delivery, attempt.agents)) for delivery in deliveries]


def _misused(delivery: Delivery, error: TransactionEnded, *, hold: bool) -> SetAside:
    where = delivery.outbox_id, delivery.key, delivery.partition
    return SetAside(*where, "dead", 0, *describe(error), open=hold)


def _note_waiting(attempt: Attempt, waiting: bool) -> None:
    """Whether the next runs had better look for conversations that wait."""
    waits, topic = attempt.history.waits, attempt.transaction.topic
    waits[topic] = KEYED_RUNS if waiting else max(0, waits[topic] - 1)
