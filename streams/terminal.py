"""Text that others wrote, made harmless for whoever reads it on a terminal or in a log.

Escape sequences move the cursor and rewrite lines, bidirectional controls turn the order of letters
around: what is not printable is shown as Python writes it in a string, in JSON as its `\\u` escape,
which means the same to a program.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import orjson


def printable(text: str) -> str:
    """One line with everything escaped that is not printable."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def printable_lines(text: str) -> str:
    """Several lines, each printable."""
    return "\n".join(map(printable, text.split("\n")))


def printable_json(text: str) -> str:
    """A JSON text whose strings hold escapes for what is not printable; it means the same."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text
    )


def document(value: Any) -> str:
    """The value as indented JSON, safe to print."""
    raw = orjson.dumps(value, default=str, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS)
    return printable_json(raw.decode(errors="replace"))


def time_of(millis: int) -> str:
    """A record's timestamp as ISO 8601.

    Where no calendar of ours has that year, it is its milliseconds.
    """
    try:
        at = datetime.fromtimestamp(millis / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return f"{millis}ms(no-such-year)"
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
