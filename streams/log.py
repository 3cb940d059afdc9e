"""Logs are events: a constant message with its data in `extra`, as text or as JSON lines."""

from __future__ import annotations

import logging
import re
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from streams.settings import Log
from streams.terminal import printable, printable_json, printable_lines

# Of these only warnings are heard, and the same one once in SELDOM seconds: in an outage they
# repeat themselves all the time.
LIBRARIES = (
    "aiokafka",
    "kafka",
    "faust",
    "mode",
    "aiohttp",
    "asyncio",
    "alembic",
    "sqlalchemy",
    "psycopg",
    "opentelemetry",
)
SELDOM = 30.0
# Of where an error was raised: with what is called in between a line becomes hard to read.
FRAMES = 3
# What somebody prints while Faust has replaced stdout is no library's chatter.
PRINTED = "mode.redirect"
_NUMBER = re.compile(r"\d+")


def setup(settings: Log, *, debug: bool = False) -> None:
    """Send every log record to stderr in the configured format; the last call wins.

    `debug` adds tracebacks and overrides the level: without it a record's exception is its type,
    one line, and where it was raised.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json(debug) if settings.format == "json" else _Text(debug))
    if not debug:
        handler.addFilter(_Seldom())
    logging.basicConfig(
        level="DEBUG" if debug else settings.level.upper(), handlers=[handler], force=True
    )
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(logging.INFO if debug else logging.WARNING)
    logging.getLogger(PRINTED).setLevel(logging.INFO)
    # That a connection cannot be reset is what an outage looks like to a pool: it is reported by
    # whoever waits.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.INFO if debug else logging.CRITICAL)


class _Seldom(logging.Filter):
    """Lets the same message of a library through once in SELDOM seconds.

    Messages that differ in numbers only are the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] not in LIBRARIES or record.name == PRINTED:
            return True
        same, now = (record.name, _NUMBER.sub("", str(record.msg))), time.monotonic()
        if now - self._said.get(same, -SELDOM) < SELDOM:
            return False
        if len(self._said) > 1000:
            self._said.clear()
        self._said[same] = now
        return True


class _Text(logging.Formatter):
    """A record as one line of text, with its data at the end.

    For example: `2026-01-31T12:00:00.123Z WARNING streams.relay: message dead outbox_id=7
    error_code=unpublishable`.
    """

    def __init__(self, tracebacks: bool) -> None:
        super().__init__()
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        # Faust draws tables.
        parts = [
            (
                f"{_time(record)} {record.levelname} {record.name}:"
                f" {printable(' '.join(record.getMessage().split()))}"
            )
        ]
        parts += [f"{key}={_word(value)}" for key, value in _data(record).items()]
        line = " ".join(parts)
        if self._tracebacks and record.exc_info:
            line += "\n" + printable_lines(self.formatException(record.exc_info))
        return line


class _Json(logging.Formatter):
    """`{"time": ..., "level": ..., "logger": ..., "message": ..., <extra>}`."""

    def __init__(self, tracebacks: bool) -> None:
        super().__init__()
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_data(record),
        }
        if self._tracebacks and record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return printable_json(
            orjson.dumps(fields, default=str, option=orjson.OPT_NON_STR_KEYS).decode(
                errors="replace"
            )
        )


_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def _data(record: logging.LogRecord) -> dict[str, Any]:
    data = {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        data.setdefault("exception", type(error).__name__)
        if where := _where(error):
            data.setdefault("at", where)
    return data


def _where(error: BaseException) -> str:
    """The innermost calls, files and lines, innermost first: they hold nobody's text."""
    steps = traceback.walk_tb(error.__traceback__)
    frames = traceback.StackSummary.extract(steps, lookup_lines=False)[: -FRAMES - 1 : -1]
    return ", ".join(
        f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno} in {frame.name}"
        for frame in frames
    )


def _time(record: logging.LogRecord) -> str:
    return (
        datetime.fromtimestamp(record.created, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


def _word(value: Any) -> str:
    """A value as one word.

    Anything with blanks or quotes becomes a JSON string, so that a line stays a line.
    """
    text = value if isinstance(value, str) else str(value)
    plain = text.isprintable() and text and not any(mark in text for mark in ' "=')
    return (
        text
        if plain
        else printable_json(orjson.dumps(text.encode(errors="replace").decode()).decode())
    )
