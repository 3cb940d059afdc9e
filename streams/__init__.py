"""Write history without making your user wait and without ever losing it.

Reading order: `events` (what a message is), `registry` (who handles it), `codec`, `outbox`
(business code enqueues), `relay` (committed rows into Kafka), `worker` (runs of records into
PostgreSQL), `app` and `cli` (how it is started). Nothing imported here needs Faust or Kafka.
"""

from streams.errors import (
    OutboxDisabled,
    OutboxNotConfigured,
    PayloadInvalid,
    Reject,
    Retry,
    StreamsError,
)
from streams.events import Batch, Message, event
from streams.registry import Effect, Tally, agent

__all__ = [
    "Batch",
    "Effect",
    "Message",
    "OutboxDisabled",
    "OutboxNotConfigured",
    "PayloadInvalid",
    "Reject",
    "Retry",
    "StreamsError",
    "Tally",
    "agent",
    "event",
]
