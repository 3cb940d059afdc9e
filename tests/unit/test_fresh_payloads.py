"""A message that is given to a handler once more is as it came, whatever a call did to it."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from decimal import Decimal

from streams.events import Message
from streams.worker.failure.isolate import fresh


@dataclasses.dataclass(frozen=True, slots=True)
class Tagged:
    """A payload with a list in it."""

    room: str
    tags: list[str]


@dataclasses.dataclass(frozen=True)
class Plain:
    """A payload of what nobody can change."""

    room: str
    at: datetime
    price: Decimal | None


def test_what_a_call_does_to_a_list_in_a_payload_is_gone_with_it() -> None:
    """A message was stored with its tags twice, because another one had failed beside it."""
    message = Message(7, "k", Tagged("r", ["a"]), 0)
    given = fresh(message)
    given.payload.tags.append("b")
    assert (given.outbox_id, given.key, message.payload) == (7, "k", Tagged("r", ["a"]))
    assert fresh(message).payload == Tagged("r", ["a"])


def test_what_nobody_can_change_is_not_copied() -> None:
    message = Message(7, "k", Plain("r", datetime(2026, 1, 1), None), 0)
    assert fresh(message) is message
