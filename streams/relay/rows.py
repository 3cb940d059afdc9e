"""What a relay moves: committed outbox rows as the Kafka records they become, with the position they lead up to."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

# An outbox id as the text PostgreSQL sent, kept as bytes: it goes into a header and is read by nobody on the way.
Header = tuple[str, str | bytes | None]

_EPOCH = datetime(1970, 1, 1)


class Row(NamedTuple):
    """One outbox row as a record: exactly what Debezium's Outbox Event Router emits for it.

    `timestamp` is created_at in milliseconds since 1970, UTC; None when no record can carry it (infinity, before 1970).
    `headers` are id, biz_type, traceparent, resend_of, in this order, null columns as headers with null.
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


class Rows(NamedTuple):
    """Rows in commit order; once they and all before them are with the broker, everything up to `position` is.

    `position` is None in the middle of a transaction; `rows` may be empty when only the position moved.
    """

    rows: list[Row]
    position: int | None
    size: int


class Milliseconds:
    """`2026-01-31 12:00:00.123` as milliseconds since 1970; None for what a Kafka record cannot carry.

    Rows come nearly in the order of time, so the last second's value is kept and mostly right.
    """

    __slots__ = ("_millis", "_second")

    def __init__(self) -> None:
        self._second = b""
        self._millis: int | None = None

    def __call__(self, text: bytes) -> int | None:
        second = text[:19]
        if second != self._second or self._millis is None:
            self._second = second
            self._millis = _millis(text)
        if self._millis is None:
            return None
        # PostgreSQL drops trailing zeros: `.5` is 500 ms.
        return self._millis + (int(text[20:].ljust(3, b"0")) if len(text) > 19 else 0)


def _millis(text: bytes) -> int | None:
    try:
        since = datetime.fromisoformat(text.decode()[:19]) - _EPOCH
    except ValueError:
        return None
    millis = (since.days * 86_400 + since.seconds) * 1000
    # librdkafka takes 0 for "now", and text after the second means a year beyond 9999 or one before Christ.
    usable = millis > 0 and (len(text) == 19 or (text[19:20] == b"." and text[20:].isdigit()))
    return millis if usable else None
