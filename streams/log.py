"""Logs are events: a constant message with its data in `extra`, as text (`key=value`) or as one JSON object a line."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Any

import orjson

from streams.settings import Log


def setup(settings: Log, *, debug: bool = False) -> None:
    """Send every log record to stderr in the configured format; the last call wins.

    `debug` adds tracebacks and overrides the level: without it a record's exception is its type and one line.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json(debug) if settings.format == "json" else _Text(debug))
    logging.basicConfig(level="DEBUG" if debug else settings.level.upper(), handlers=[handler], force=True)
    for chatty in ("asyncio", "aiokafka", "kafka", "alembic", "sqlalchemy", "psycopg"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


class _Text(logging.Formatter):
    """`2026-01-31T12:00:00.123Z WARNING streams.relay: message dead outbox_id=7 error_code=unpublishable`."""

    def __init__(self, tracebacks: bool) -> None:
        super().__init__()
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        parts = [f"{_time(record)} {record.levelname} {record.name}: {record.getMessage()}"]
        parts += [f"{key}={_word(value)}" for key, value in _data(record).items()]
        line = " ".join(parts)
        if self._tracebacks and record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class _Json(logging.Formatter):
    """`{"time": ..., "level": ..., "logger": ..., "message": ..., <extra>}`."""

    def __init__(self, tracebacks: bool) -> None:
        super().__init__()
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        found: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_data(record),
        }
        if self._tracebacks and record.exc_info:
            found["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(found, default=str, option=orjson.OPT_NON_STR_KEYS).decode(errors="replace")


_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def _data(record: logging.LogRecord) -> dict[str, Any]:
    data = {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        data.setdefault("exception", type(error).__name__)
    return data


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _word(value: Any) -> str:
    """A value as one word; anything with blanks or quotes becomes a JSON string, so that a line stays a line."""
    text = value if isinstance(value, str) else str(value)
    plain = text.isprintable() and text and not any(mark in text for mark in ' "=')
    return text if plain else orjson.dumps(text.encode(errors="replace").decode()).decode()
