"""Faust tables of what waits and what is dead, keyed by conversation: when to try again, and what pages show without a query.

PostgreSQL decides; a table may lag or be lost at any moment.  Never message text in here: ids, attempts, due times and codes.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import faust
import orjson
from faust.streams import _current_event

from streams.worker.run.conversations import Head
from streams.worker.run.transaction import Aside

TABLES = ("retries", "dead")
DEAD_KEPT = 100  # dead letters of one conversation that the table shows


class AsideTables:
    """The `retries` and `dead` tables of one topic, co-partitioned with it."""

    def __init__(self, app: faust.App, topic: str, partitions: int) -> None:
        options: dict[str, Any] = {"partitions": partitions, "key_type": bytes, "value_type": bytes}
        self.retries = app.Table(f"{topic}-{TABLES[0]}", help="the message each conversation waits for", **options)
        self.dead = app.Table(f"{topic}-{TABLES[1]}", help="dead letters", **options)
        self._missing: defaultdict[str, dict[str, Any]] = defaultdict(dict)

    def note_heads(self, event: Any, keys: Iterable[str], heads: Mapping[str, Head]) -> None:
        """What these conversations of the event's partition wait for now, if for anything."""
        with _as_current(event):
            for key in keys:
                raw, head = key.encode(), heads.get(key)
                if head is not None:
                    self.retries[raw] = orjson.dumps(_entry(head))
                elif raw in self.retries:
                    self.retries.pop(raw)

    def note_dead(self, event: Any, dead: Iterable[Aside]) -> None:
        """New dead letters of the event's partition."""
        with _as_current(event):
            for aside in dead:
                raw = aside.key.encode()
                entry = orjson.loads(self.dead.get(raw) or b"{}")
                entry[str(aside.outbox_id)] = _dead_entry(aside)
                self._write_dead(raw, entry)

    def mend_dead(self, event: Any, keys: Iterable[str], still: Collection[int]) -> None:
        """Drop what is dead no more of these conversations, and add what the last comparison missed."""
        with _as_current(event):
            for key in keys:
                raw = key.encode()
                before = orjson.loads(self.dead.get(raw) or b"{}")
                entry = {one: what for one, what in before.items() if int(one) in still} | self._missing.pop(key, {})
                if entry != before:
                    self._write_dead(raw, entry)

    def waiting(self, partitions: Collection[int]) -> Iterator[tuple[int, str, float | None]]:
        """(partition, conversation, due) of what waits in these partitions."""
        for raw, value in list(self.retries.items()):
            entry = orjson.loads(value)
            if entry["partition"] in partitions:
                yield entry["partition"], raw.decode(), entry["due"]

    def dead_ids(self, partitions: Collection[int]) -> set[int]:
        """The dead letters shown of these partitions."""
        return {
            int(one)
            for value in self.dead.values()
            for one, entry in orjson.loads(value).items()
            if entry["partition"] in partitions
        }

    def dead_of(self, keys: Iterable[str]) -> list[int]:
        """The dead letters shown, or about to be, of these conversations."""
        found = [int(one) for key in keys for one in orjson.loads(self.dead.get(key.encode()) or b"{}")]
        return found + [int(one) for key in keys for one in self._missing.get(key, ())]

    def differing(
        self,
        partitions: Collection[int],
        heads: Mapping[tuple[int, str], Head],
        dead: Iterable[Aside],
        gone: Collection[int],
    ) -> set[tuple[int, str]]:
        """(partition, conversation) whose entries are not what PostgreSQL says: a wake-up call mends them."""
        found: set[tuple[int, str]] = set()
        shown: dict[tuple[int, str], Any] = {}
        for raw, value in list(self.retries.items()):
            entry = orjson.loads(value)
            if entry["partition"] in partitions:
                shown[entry["partition"], raw.decode()] = entry
        found |= {where for where in shown if where not in heads}
        found |= {where for where, head in heads.items() if shown.get(where) != _entry(head)}
        listed: set[int] = set()
        for raw, value in list(self.dead.items()):
            for one, entry in orjson.loads(value).items():
                listed.add(int(one))
                if int(one) in gone:
                    found.add((entry["partition"], raw.decode()))
        self._missing.clear()
        for aside in dead:
            if aside.outbox_id not in listed and len(self._missing[aside.key]) < DEAD_KEPT:
                self._missing[aside.key][str(aside.outbox_id)] = _dead_entry(aside)
                found.add((aside.partition, aside.key))
        return found

    def _write_dead(self, raw: bytes, entry: dict[str, Any]) -> None:
        if entry:
            kept = sorted(entry, key=int)[-DEAD_KEPT:]
            self.dead[raw] = orjson.dumps({one: entry[one] for one in kept})
        elif raw in self.dead:
            self.dead.pop(raw)


def _entry(head: Head) -> dict[str, Any]:
    return {
        "outbox_id": head.outbox_id,
        "status": head.status,
        "attempts": head.attempts,
        "code": head.code,
        "due": head.due,
        "partition": head.partition,
    }


def _dead_entry(aside: Aside) -> dict[str, Any]:
    return {"attempts": aside.attempts, "code": aside.code, "partition": aside.partition}


@contextmanager
def _as_current(event: Any) -> Iterator[None]:
    """Faust takes the partition of a table write from the event being iterated, a context variable of the stream's task."""
    token = _current_event.set(weakref.ref(event))
    try:
        yield
    finally:
        _current_event.reset(token)
