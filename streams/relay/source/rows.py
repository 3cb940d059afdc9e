"""What a relay moves: committed outbox rows as Kafka records, with the position they lead to."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import NamedTuple, cast

# An outbox id as the text PostgreSQL sent, kept as bytes: it goes into a header and is read by
# nobody on the way.
Header = tuple[str, str | bytes | None]

_EPOCH = datetime(1970, 1, 1)


class Row(NamedTuple):
    """One outbox row as a record: exactly what Debezium's Outbox Event Router emits for it.

    `timestamp` is created_at in milliseconds since 1970, UTC; None when no record can carry it
    (infinity, before 1970). `headers` are id, biz_type, traceparent, resend_of, in this order, null
    columns as headers with null.
    """

    topic: str
    key: bytes
    value: bytes
    timestamp: int | None
    headers: list[Header]

    @property
    def id(self) -> int:
        """The row's own outbox id."""
        return int(self.headers[0][1] or 0)

    @property
    def biz_type(self) -> str:
        """Which kind of message it is."""
        return bytes(self.headers[1][1] or b"").decode()  # type: ignore[arg-type]

    @property
    def root_id(self) -> int:
        """The outbox id whose fate this row decides: the one it resends, else its own."""
        return int(self.headers[3][1] or self.headers[0][1] or 0)


# A NamedTuple's own constructor is a function in Python.
new_row = cast(
    "Callable[[tuple[str, bytes, bytes, int | None, list[Header]]], Row]",
    partial(tuple.__new__, Row),
)


class Rows(NamedTuple):
    """Rows in commit order, and the position that they reach.

    Once they and all before them are with the broker, everything up to `position` is. `position` is
    None in the middle of a transaction; `rows` may be empty when only the position moved.
    """

    rows: list[Row]
    position: int | None
    size: int


class Milliseconds:
    """`2026-01-31 12:00:00.123` as milliseconds since 1970.

    None for what a Kafka record cannot carry.

    Rows come nearly in the order of time, so the last text's and the last second's values are kept
    and mostly right.
    """

    __slots__ = ("_found", "_second", "_start", "_text")

    def __init__(self) -> None:
        self._text = self._second = b""
        self._found: int | None = None
        self._start: int | None = None

    def __call__(self, text: bytes) -> int | None:
        if text == self._text:
            return self._found
        if text[:19] != self._second or self._start is None:
            self._second, self._start = text[:19], _start_of_second(text[:19])
        self._text, self._found = text, _add(self._start, text[19:])
        return self._found


def _start_of_second(text: bytes) -> int | None:
    try:
        since = datetime.fromisoformat(text.decode()) - _EPOCH
    except ValueError:
        return None
    return (since.days * 86_400 + since.seconds) * 1000


def _add(start: int | None, rest: bytes) -> int | None:
    """The second and its fraction, from which PostgreSQL drops trailing zeros: `.5` is 500 ms."""
    # Other text after the second is a year before Christ; librdkafka takes 0 for "now".
    if (
        start is None
        or start <= 0
        or not (rest == b"" or (rest[:1] == b"." and rest[1:].isdigit()))
    ):
        return None
    return start + int(rest[1:4].ljust(3, b"0"))
