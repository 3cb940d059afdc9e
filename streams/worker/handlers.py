"""Call each biz_type's handler with its batch, and find the guilty message when one fails.

A failed batch is halved inside savepoints, from left to right: what succeeds stays done, a message that fails alone is
guilty, and later messages of its conversation are parked behind it, never applied past it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from streams.errors import Retry
from streams.events import Batch, Message
from streams.registry import Handler, Registry
from streams.worker.fate import Verdict, delay, describe, jittered, judge


@dataclass(frozen=True, slots=True)
class Guilty:
    """A claimed message that is not applied after all: `retrying` after an error, or `parked` behind one."""

    outbox_id: int
    key: str
    status: str
    attempts: int = 0
    code: str | None = None
    error: str | None = None
    delay: float | None = None

    def row(self) -> dict[str, Any]:
        """As the named query `set_aside` reads it."""
        return {
            "outbox_id": self.outbox_id,
            "status": self.status,
            "key": self.key,
            "attempts": self.attempts,
            "error_code": self.code,
            "error": self.error,
            "delay": self.delay,
        }


async def apply(
    connection: AsyncConnection,
    messages: Sequence[Message[Any]],
    biz_types: Sequence[str],
    registry: Registry,
    *,
    isolate: bool,
    seconds: float,
) -> list[Guilty]:
    """Hand the messages to their handlers, in order per conversation.

    Without `isolate` an error is raised as it is; with it, the messages that failed are returned, and those behind them.
    """
    if not isolate:
        for biz_type, batch in _batches(messages, biz_types):
            async with asyncio.timeout(seconds):
                await registry.agents[biz_type].handler(Batch(batch), connection)
        return []
    isolation = _Isolation(connection, seconds)
    for biz_type, batch in _batches(messages, biz_types):
        await isolation.apply(registry.agents[biz_type].handler, batch)
    # `arrived` is drawn in this order: it has to be the order of the records.
    position = {message.outbox_id: index for index, message in enumerate(messages)}
    return sorted(isolation.guilty, key=lambda one: position[one.outbox_id])


class _Isolation:
    def __init__(self, connection: AsyncConnection, seconds: float) -> None:
        self._connection, self._seconds = connection, seconds
        self._keys: set[str] = set()
        self.guilty: list[Guilty] = []

    async def apply(self, handler: Handler, messages: Sequence[Message[Any]]) -> None:
        self.guilty += [Guilty(one.outbox_id, one.key, "parked") for one in messages if one.key in self._keys]
        left = [one for one in messages if one.key not in self._keys]
        if not left:
            return
        try:
            async with asyncio.timeout(self._seconds), self._connection.begin_nested():
                await handler(Batch(left), self._connection)
        except Exception as error:
            if judge(error, self._connection.sync_connection is None or self._broken()) is Verdict.WAIT:
                raise
            if len(left) == 1:
                self._blame(left[0], error)
                return
            middle = len(left) // 2
            await self.apply(handler, left[:middle])
            await self.apply(handler, left[middle:])

    def _broken(self) -> bool:
        return self._connection.invalidated

    def _blame(self, message: Message[Any], error: Exception) -> None:
        attempts = message.attempts + 1
        code, reason = describe(error)
        wait = error.after if isinstance(error, Retry) and error.after is not None else jittered(delay(attempts))
        self._keys.add(message.key)
        self.guilty.append(Guilty(message.outbox_id, message.key, "retrying", attempts, code, reason, wait))


def _batches(messages: Sequence[Message[Any]], biz_types: Sequence[str]) -> list[tuple[str, list[Message[Any]]]]:
    """One batch a biz_type, and another round wherever the biz_type changes within one conversation."""
    if len(set(biz_types)) == 1:
        return [(biz_types[0], list(messages))]
    batches: list[tuple[str, list[Message[Any]]]] = []
    current: dict[str, list[Message[Any]]] = {}
    kind_of: dict[str, str] = {}
    for message, biz_type in zip(messages, biz_types, strict=True):
        if kind_of.setdefault(message.key, biz_type) != biz_type:
            batches += current.items()
            current, kind_of = {}, {message.key: biz_type}
        current.setdefault(biz_type, []).append(message)
    return batches + list(current.items())
