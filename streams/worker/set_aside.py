"""A message that is not persisted, or not yet.

It failed, cannot be read, or waits behind another.
"""

from __future__ import annotations

from dataclasses import dataclass

from streams.worker.delivery import Delivery


@dataclass(frozen=True, slots=True)
class SetAside:
    """One message that is set aside, as it is decided, stored and shown.

    outbox_id    the message
    key          its conversation
    partition    where it was delivered
    status       retrying, parked, replaying or dead
    attempts     how often it failed
    code         of its last error: an SQLSTATE, a class, a handler's own word
    error        the reason, without a word of the message
    delay        seconds from now until it is tried again, where a time is set
    due          the same in epoch seconds, once it is stored; None when no time moves it
    open         whether its conversation waits for it
    """

    outbox_id: int
    key: str
    partition: int
    status: str
    attempts: int = 0
    code: str | None = None
    error: str | None = None
    delay: float | None = None
    due: float | None = None
    open: bool = True


def parked(delivery: Delivery) -> SetAside:
    """It waits behind an open message of its conversation, as often as it has failed itself."""
    return SetAside(
        delivery.outbox_id, delivery.key, delivery.partition, "parked", delivery.attempts
    )
