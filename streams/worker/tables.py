"""Faust tables of what is set aside, keyed by conversation: when to try again, and what the pages show without a query.

PostgreSQL decides; a table may lag or be lost at any moment.  Never message text in here: ids, attempts, due times and codes.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import faust
import orjson
from faust.streams import _current_event

from streams.worker.transaction import Aside

DEAD = "dead"


class AsideTables:
    """The `retries` and `dead` tables of one topic, co-partitioned with it."""

    def __init__(self, app: faust.App, topic: str, partitions: int) -> None:
        options: dict[str, Any] = {"partitions": partitions, "key_type": bytes, "value_type": bytes}
        self.retries = app.Table(f"{topic}-retries", help="messages waiting for a retry or behind one", **options)
        self.dead = app.Table(f"{topic}-dead", help="dead letters", **options)

    def write(self, event: Any, asides: Iterable[Aside]) -> None:
        """Note what the run of this event set aside, in the partition it came from."""
        with _as_current(event):
            for aside in asides:
                table = self.dead if aside.status == DEAD else self.retries
                key = aside.key.encode()
                entry = orjson.loads(table.get(key) or b"{}")
                entry[str(aside.outbox_id)] = {
                    "status": aside.status,
                    "attempts": aside.attempts,
                    "code": aside.code,
                    "due": aside.due,
                    "partition": event.message.partition,
                }
                table[key] = orjson.dumps(entry)


@contextmanager
def _as_current(event: Any) -> Iterator[None]:
    """Faust takes the partition of a table write from the event being iterated, a context variable of the stream's task."""
    token = _current_event.set(weakref.ref(event))
    try:
        yield
    finally:
        _current_event.reset(token)
