"""Call each biz_type's handler once with its batch, and once more wherever the biz_type changes within a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum, auto
from typing import Any

from streams.events import Message
from streams.registry import Agent
from streams.worker.failure.handler_call import HandlerCaller
from streams.worker.failure.isolate import FailureHistory, Guilty, Isolation
from streams.worker.failure.savepoint import Savepoint


class Strategy(IntEnum):
    """How a run is worked, from the fastest way to the most careful one."""

    WHOLE = auto()  # all at once: an error fails the run
    BISECT = auto()  # in savepoints, to find who is guilty
    SINGLE = auto()  # the same, each message on its own


async def apply(
    caller: HandlerCaller,
    savepoint: Savepoint,
    messages: Sequence[Message[Any]],
    biz_types: Sequence[str],
    agents: Mapping[str, Agent],
    care: Strategy,
    seconds: float,
    memory: FailureHistory,
) -> list[Guilty]:
    """Hand the messages to their handlers, in order per conversation; returns those that failed and those behind them.

    With `Strategy.WHOLE` an error is raised as it is.
    """
    if care is Strategy.WHOLE:
        for biz_type, batch in batches(messages, biz_types):
            await caller.call(agents[biz_type], batch)
            memory.worked(biz_type, batch)
        return []
    await caller.remember()
    isolation = Isolation(caller, savepoint, seconds, memory, one_by_one=care is Strategy.SINGLE)
    for biz_type, batch in batches(messages, biz_types):
        await isolation.apply(agents[biz_type], batch)
    await caller.restore()
    isolation.check_handlers()
    return isolation.guilty


def batches(messages: Sequence[Message[Any]], biz_types: Sequence[str]) -> list[tuple[str, list[Message[Any]]]]:
    """One batch a biz_type, and another round wherever the biz_type changes within one conversation."""
    if len(set(biz_types)) == 1:
        return [(biz_types[0], list(messages))]
    found: list[tuple[str, list[Message[Any]]]] = []
    current: dict[str, list[Message[Any]]] = {}
    kind_of: dict[str, str] = {}
    for message, biz_type in zip(messages, biz_types, strict=True):
        if kind_of.setdefault(message.key, biz_type) != biz_type:
            found += current.items()
            current, kind_of = {}, {message.key: biz_type}
        current.setdefault(biz_type, []).append(message)
    return found + list(current.items())
