"""`streams enqueue`: JSON lines into the outbox, checked, in the order of the file.

It stops at the first line that cannot be taken: every line before it is committed, nothing from it
on is, and the error says so, so that `tail -n +LINE FILE | streams enqueue -` goes on from there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import click
import orjson
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from streams import codec, outbox
from streams.cli.bar import bar
from streams.cli.choose import say
from streams.database import migrate
from streams.errors import ServiceUnreachable, StreamsError, UsageError
from streams.events import EventType
from streams.registry import Registry, configured
from streams.settings import Settings, load

BATCH = 1000
FIELDS = frozenset(("biz_type", "key", "payload"))


class LineInvalid(UsageError):
    """A line that is not a message; says its number and what is wrong with it."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"line {number}: {reason}")


class LinesInvalid(StreamsError):
    """`--check` found lines that cannot be taken: the answer is bad news."""


@click.command()
@click.argument("file", type=click.File("rb"))
@click.option(
    "--check", is_flag=True, help="Only say which lines could not be taken; enqueue nothing."
)
def enqueue(file: IO[bytes], check: bool) -> None:
    """Enqueue JSON lines {"biz_type", "key", "payload"} from FILE, or standard input for -.

    A key is optional; when given, it must be what the payload says. Ends with 2 at the first line
    that cannot be taken.
    """
    settings = load()
    registry = configured(settings)
    with _progress(file) as advance:
        if check:
            _check(file, settings, registry, advance)
        else:
            outbox.start(settings)
            say(f"{_enqueue(file, settings, registry, advance)} messages enqueued")


def parse(raw: bytes, settings: Settings, registry: Registry) -> object:
    """The event of one line; ValueError says what is wrong.

    It repeats nothing of the payload but one short value.
    """
    try:
        line = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise ValueError(codec.unparsable(raw)) from None
    if not isinstance(line, dict) or not {"biz_type", "payload"} <= line.keys() <= FIELDS:
        raise ValueError(
            'expected an object with "biz_type", "payload" and optionally "key", and nothing else'
        )
    kind = _kind(line["biz_type"], registry)
    try:
        event = codec.decode(orjson.dumps(line["payload"]), kind.payload)
        key, _ = codec.encode(event, kind, settings.outbox.max_bytes)
    except (StreamsError, orjson.JSONEncodeError) as error:
        raise ValueError(str(error)) from None
    if "key" in line and line["key"] != key:
        raise ValueError(_other_key(line["key"], kind, key))
    return event


def _other_key(given: Any, kind: EventType, key: str) -> str:
    """Of keys only how long they are: what a user wrote may be in them."""
    size = (
        f"{len(given.encode(errors='replace'))} bytes"
        if isinstance(given, str)
        else type(given).__name__
    )
    return (
        f"{kind.biz_type}: key ({size}) is not what field {kind.key!r} of the payload says"
        f" ({len(key.encode())} bytes): expected the same"
    )


def _kind(biz_type: Any, registry: Registry) -> EventType:
    if not isinstance(biz_type, str) or biz_type not in registry.agents:
        known = ", ".join(sorted(registry.agents))
        raise ValueError(f"unknown biz_type {biz_type!r:.80}: expected one of {known}")
    return registry.agents[biz_type].event


def _check(
    file: IO[bytes], settings: Settings, registry: Registry, advance: Callable[[int], None]
) -> None:
    good = bad = 0
    for number, raw in _lines(file):
        try:
            parse(raw, settings, registry)
            good += 1
        except ValueError as error:
            say(f"line {number}: {error}")
            bad += 1
        advance(len(raw))
    if bad:
        raise LinesInvalid(f"{bad} of {good + bad} lines cannot be taken")
    say(f"{good} lines can be taken")


def _enqueue(
    file: IO[bytes], settings: Settings, registry: Registry, advance: Callable[[int], None]
) -> int:
    """How many were committed; the error that ends it early says that too."""
    committed = 0
    with migrate.connection(settings) as connection:
        migrate.check(connection)
        connection.rollback()
        for events, size, invalid in _batches(file, settings, registry):
            try:
                _commit(connection, events)
            except DBAPIError as error:
                raise _interrupted(error, committed, len(events)) from None
            committed += len(events)
            advance(size)
            if invalid is not None:
                raise UsageError(f"{invalid}; the {committed} messages before it are committed")
    return committed


def _commit(connection: Connection, events: list[object]) -> None:
    if events:
        with connection.begin():
            outbox.enqueue_sync(connection, events)


def _batches(
    file: IO[bytes], settings: Settings, registry: Registry
) -> Iterator[tuple[list[object], int, LineInvalid | None]]:
    """Up to BATCH events, their bytes, and the line that ended it all."""
    events: list[object] = []
    size = 0
    for number, raw in _lines(file):
        try:
            events.append(parse(raw, settings, registry))
        except ValueError as error:
            yield events, size, LineInvalid(number, str(error))
            return
        size += len(raw)
        if len(events) == BATCH:
            yield events, size, None
            events, size = [], 0
    yield events, size, None


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Lines that hold something, with their numbers."""
    for number, raw in enumerate(file, start=1):
        if not raw.isspace():
            yield number, raw


def _interrupted(error: DBAPIError, committed: int, doubtful: int) -> StreamsError:
    reason = str(error.orig).strip().splitlines()[0]
    text = f"{committed} messages are committed, then PostgreSQL failed: {reason}"
    if error.connection_invalidated:
        return ServiceUnreachable(f"{text} (of the next {doubtful} either all or none are)")
    return UsageError(f"{text} (none of the next {doubtful} is)")


@contextmanager
def _progress(file: IO[bytes]) -> Iterator[Callable[[int], None]]:
    """The callable takes the bytes that were worked."""
    total = file.seek(0, 2) if file.seekable() and file is not sys.stdin.buffer else None
    if total is not None:
        file.seek(0)
    with bar("enqueue", total) as advance:
        yield advance
