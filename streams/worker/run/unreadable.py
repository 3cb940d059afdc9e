"""What becomes of messages that no handler gets.

They cannot be read, or wait behind one that cannot.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import cast

from streams.codec import Unreadable
from streams.registry import Agent
from streams.worker.delivery import Delivery
from streams.worker.failure.classify import describe
from streams.worker.set_aside import SetAside, parked

# How long a message of a biz_type that nobody registered waits for a worker that knows it.
UNREGISTERED_SECONDS = 600.0


def patience_with(
    biz_types: Collection[str], retired: Mapping[str, bool], seconds: float, *, foreign: bool
) -> dict[str, float]:
    """For how many seconds messages of each of these unknown biz_types wait.

    They wait for somebody who knows it.
    """
    shortest = min(UNREGISTERED_SECONDS, seconds)
    longest = UNREGISTERED_SECONDS if foreign else seconds
    return dict.fromkeys(biz_types, shortest) | {
        name: 0.0 if is_retired else longest for name, is_retired in retired.items()
    }


def fate_on_arrival(delivery: Delivery, agents: Mapping[str, Agent]) -> SetAside:
    """The fate of a message that arrives behind an open one.

    It is parked, or dead when it cannot be read.
    """
    return (
        parked(delivery)
        if delivery.fault is None or delivery.unknown
        else _unreadable(delivery, agents)
    )


def readable(
    turns: Sequence[Delivery], agents: Mapping[str, Agent], patience: Mapping[str, float]
) -> tuple[list[Delivery], list[SetAside]]:
    """What can be handed to handlers; and what cannot be read, with what waits behind it."""
    ready: list[Delivery] = []
    fates: list[SetAside] = []
    waiting: set[str] = set()
    for delivery in turns:
        if delivery.key in waiting and (delivery.message is not None or delivery.unknown):
            fates.append(parked(delivery))
        elif delivery.message is None:
            fate = _unreadable(
                delivery, agents, patience.get(delivery.biz_type, 0.0) - delivery.waited
            )
            fates.append(fate)
            if fate.open:
                waiting.add(delivery.key)
        else:
            ready.append(delivery)
    return ready, fates


def in_line(
    turns: Sequence[Delivery], fates: Mapping[int, SetAside]
) -> list[tuple[Delivery, SetAside]]:
    """Each message that is set aside, in the order of the turns.

    One that waits for nobody but its turn is parked.

    What nobody here knows was set aside before any handler was called: an earlier message of its
    conversation may have failed since.
    """
    line: list[tuple[Delivery, SetAside]] = []
    waiting: set[str] = set()
    for delivery in turns:
        if (fate := fates.get(delivery.outbox_id)) is None:
            continue
        if delivery.unknown and fate.status == "retrying" and fate.key in waiting:
            fate = parked(delivery)
        if fate.open:
            waiting.add(fate.key)
        line.append((delivery, fate))
    return line


def _unreadable(delivery: Delivery, agents: Mapping[str, Agent], patience: float = 0.0) -> SetAside:
    """The fate of a message that cannot be parsed or validated."""
    fault = cast("Unreadable", delivery.fault)
    code, reason = describe(fault)
    ids = delivery.outbox_id, delivery.key, delivery.partition
    if delivery.unknown and patience > 0:
        # It was not tried: a worker of another version may know it, and it keeps the attempts that
        # it has.
        return SetAside(*ids, "retrying", delivery.attempts, code, reason, delay=patience)
    agent = agents.get(delivery.biz_type)
    holds = agent is not None and agent.on_dead == "hold" and bool(delivery.key)
    return SetAside(*ids, "dead", 0, code, reason, open=holds)
