"""Events as the batch that a handler gets, for a test that calls the handler itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import TypeVar

from streams.codec import decode, encode
from streams.errors import UsageError
from streams.events import Batch, Message, declared
from streams.settings import Outbox
from streams.worker.run.decode import milliseconds

E = TypeVar("E")


def batch(
    events: Sequence[E], *, first_id: int = 1, attempts: int = 0, created_at: datetime | None = None
) -> Batch[E]:
    """The events of one biz_type as a handler gets them.

    Their outbox ids ascend from `first_id`. Each was encoded and decoded as on its way through the
    outbox: PayloadInvalid when `enqueue` would refuse it. `created_at` is UTC without a time zone
    (default: now), `attempts` how often they failed before.
    """
    kinds = {declared(type(event)).biz_type: declared(type(event)) for event in events}
    if len(kinds) > 1:
        raise UsageError(
            f"a batch holds one biz_type, these events are of {', '.join(sorted(kinds))}"
        )
    created_ms = time.time_ns() // 1_000_000 if created_at is None else milliseconds(created_at)
    messages = []
    for outbox_id, event in enumerate(events, first_id):
        key, payload = encode(event, declared(type(event)), Outbox().max_bytes)
        messages.append(Message(outbox_id, key, decode(payload, type(event)), created_ms, attempts))
    return Batch(messages)
