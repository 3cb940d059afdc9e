"""Test your agents: a batch for one call of a handler, or all that a worker decides, without Kafka.

Reading order: `messages` (a batch), `inline_worker` (events on a real PostgreSQL transaction),
`fates` (what became of them). The pytest plugin `pytest_outbox_streams` brings the PostgreSQL, and
a whole `deployment` with Kafka, relay and worker. Nothing imported here needs Faust or Kafka.
"""

from streams.testing.fates import Fate, Fates
from streams.testing.inline_worker import WouldWait, persist, persist_sync, retry, retry_sync
from streams.testing.messages import batch

__all__ = [
    "Fate",
    "Fates",
    "WouldWait",
    "batch",
    "persist",
    "persist_sync",
    "retry",
    "retry_sync",
]
