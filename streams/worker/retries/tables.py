"""Faust tables of what waits and what is dead, by conversation: for the schedule and for pages.

PostgreSQL decides; a table may lag or be lost at any moment. Never message text in here: ids,
attempts, due times and codes.
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

from streams.worker.set_aside import SetAside

TABLES = ("retries", "dead")
DEAD_KEPT = 100  # dead letters of one conversation that the table shows


class AsideTables:
    """The `retries` and `dead` tables of one topic, co-partitioned with it."""

    def __init__(self, app: faust.App, topic: str, partitions: int) -> None:
        options: dict[str, Any] = {"partitions": partitions, "key_type": bytes, "value_type": bytes}
        self.retries = app.Table(
            f"{topic}-{TABLES[0]}", help="the message each conversation waits for", **options
        )
        self.dead = app.Table(f"{topic}-{TABLES[1]}", help="dead letters", **options)
        self._missing: defaultdict[str, dict[str, Any]] = defaultdict(dict)

    def note_heads(self, event: Any, keys: Iterable[str], heads: Mapping[str, SetAside]) -> None:
        """What these conversations of the event's partition wait for now, if for anything."""
        with _as_current(event):
            for key in keys:
                raw, head = key.encode(), heads.get(key)
                if head is not None:
                    self.retries[raw] = orjson.dumps(_entry(head))
                elif raw in self.retries:
                    self.retries.pop(raw)

    def note_dead(self, event: Any, dead: Iterable[SetAside]) -> None:
        """New dead letters of the event's partition."""
        with _as_current(event):
            for fate in dead:
                raw = fate.key.encode()
                entry = orjson.loads(self.dead.get(raw) or b"{}")
                entry[str(fate.outbox_id)] = _dead_entry(fate)
                self._write_dead(raw, entry)

    def mend_dead(self, event: Any, keys: Iterable[str], still: Collection[int]) -> None:
        """Drop what is dead no more, and add what the last comparison missed.

        Only of these conversations.
        """
        with _as_current(event):
            for key in keys:
                raw = key.encode()
                before = orjson.loads(self.dead.get(raw) or b"{}")
                shown = {
                    outbox_id: letter
                    for outbox_id, letter in before.items()
                    if int(outbox_id) in still
                }
                entry = shown | self._missing.pop(key, {})
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
            int(outbox_id)
            for value in self.dead.values()
            for outbox_id, entry in orjson.loads(value).items()
            if entry["partition"] in partitions
        }

    def dead_of(self, keys: Iterable[str]) -> list[int]:
        """The dead letters shown, or about to be, of these conversations."""
        ids = [
            outbox_id
            for key in keys
            for outbox_id in orjson.loads(self.dead.get(key.encode()) or b"{}")
        ]
        ids += [outbox_id for key in keys for outbox_id in self._missing.get(key, ())]
        return [int(outbox_id) for outbox_id in ids]

    def differing(
        self,
        partitions: Collection[int],
        heads: Mapping[tuple[int, str], SetAside],
        dead: Iterable[SetAside],
        gone: Collection[int],
    ) -> set[tuple[int, str]]:
        """(partition, conversation) whose entries are not what PostgreSQL says.

        A wake-up call mends them.
        """
        differing: set[tuple[int, str]] = set()
        shown: dict[tuple[int, str], Any] = {}
        for raw, value in list(self.retries.items()):
            entry = orjson.loads(value)
            if entry["partition"] in partitions:
                shown[entry["partition"], raw.decode()] = entry
        differing |= {where for where in shown if where not in heads}
        differing |= {where for where, head in heads.items() if shown.get(where) != _entry(head)}
        listed: set[int] = set()
        for raw, value in list(self.dead.items()):
            for outbox_id, entry in orjson.loads(value).items():
                listed.add(int(outbox_id))
                if int(outbox_id) in gone:
                    differing.add((entry["partition"], raw.decode()))
        self._missing.clear()
        for fate in dead:
            if fate.outbox_id not in listed and len(self._missing[fate.key]) < DEAD_KEPT:
                self._missing[fate.key][str(fate.outbox_id)] = _dead_entry(fate)
                differing.add((fate.partition, fate.key))
        return differing

    def _write_dead(self, raw: bytes, entry: dict[str, Any]) -> None:
        if entry:
            kept = sorted(entry, key=int)[-DEAD_KEPT:]
            self.dead[raw] = orjson.dumps({outbox_id: entry[outbox_id] for outbox_id in kept})
        elif raw in self.dead:
            self.dead.pop(raw)


def _entry(head: SetAside) -> dict[str, Any]:
    return {
        "outbox_id": head.outbox_id,
        "status": head.status,
        "attempts": head.attempts,
        "code": head.code,
        "due": head.due,
        "partition": head.partition,
    }


def _dead_entry(fate: SetAside) -> dict[str, Any]:
    return {"attempts": fate.attempts, "code": fate.code, "partition": fate.partition}


@contextmanager
def _as_current(event: Any) -> Iterator[None]:
    """Make this the event that is being iterated.

    Faust takes the partition of a table write from it, a context variable of the stream's task.
    """
    token = _current_event.set(weakref.ref(event))
    try:
        yield
    finally:
        _current_event.reset(token)
