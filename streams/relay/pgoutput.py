"""pgoutput protocol version 1, text format, without I/O: messages in, rows and positions out.

Only what a publication of INSERTs sends is read: Begin, Relation, Insert, Commit; everything else is passed over.
https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
"""

from __future__ import annotations

from struct import Struct

from streams.relay.rows import Milliseconds, Row, Rows

COLUMNS = ("id", "biz_type", "topic", "key", "payload", "traceparent", "resend_of", "created_at")

_length = Struct("!I").unpack_from
_count = Struct("!H").unpack_from
_end_lsn = Struct("!Q").unpack_from
_BEGIN, _COMMIT, _INSERT, _RELATION = b"BCIR"
_TEXT = ord("t")


class UnknownRelation(Exception):
    """The stream carries a row of something that is not the outbox, or lacks one of its columns."""


class Decoder:
    """Collects rows as they come, also of a transaction that has not ended: pgoutput sends committed ones only."""

    def __init__(self) -> None:
        self.in_transaction = False
        self.count = 0
        self.size = 0
        self._rows: list[Row] = []
        self._position: int | None = None
        self._order: dict[bytes, tuple[int, ...] | None] = {}
        self._topics: dict[bytes, str] = {}
        self._milliseconds = Milliseconds()

    def take(self) -> Rows | None:
        """What came since the last call; None when nothing did."""
        if not self._rows and self._position is None:
            return None
        taken = Rows(self._rows, self._position, self.size)
        self._rows, self._position, self.count, self.size = [], None, 0, 0
        return taken

    def idle(self, position: int) -> None:
        """The server has nothing to send below `position`: nothing of interest lies before it."""
        if not self.in_transaction:
            self._position = position

    def feed(self, message: bytes) -> None:
        """One message of the stream."""
        kind = message[0]
        if kind == _INSERT:
            self._insert(message)
        elif kind == _COMMIT:
            # Kind, flags, the commit's own LSN, then where it ends: confirming less would send it again.
            self._position = _end_lsn(message, 10)[0]
            self.in_transaction = False
        elif kind == _BEGIN:
            self.in_transaction = True
        elif kind == _RELATION:
            self._relation(message)

    def _insert(self, message: bytes) -> None:
        columns: list[bytes | None] = []
        at = 8
        for _ in range(_count(message, 6)[0]):
            if message[at] == _TEXT:
                start = at + 5
                at = start + _length(message, at + 1)[0]
                columns.append(message[start:at])
            else:
                columns.append(None)
                at += 1
        order = self._order.get(message[1:5])
        if order is not None:
            columns = [columns[place] for place in order]
        elif message[1:5] not in self._order:
            raise UnknownRelation("a row came before its relation was described")
        outbox_id, biz_type, topic, key, payload, traceparent, resend_of, created_at = columns
        headers = [("id", outbox_id), ("biz_type", biz_type), ("traceparent", traceparent), ("resend_of", resend_of)]
        # The five used below are NOT NULL in the table.
        name = self._topics.get(topic) or self._topic(topic)  # type: ignore[arg-type]
        stamp = self._milliseconds(created_at)  # type: ignore[arg-type]
        self._rows.append(Row(name, key, payload, stamp, headers))  # type: ignore[arg-type]
        self.count += 1
        self.size += len(message)

    def _topic(self, raw: bytes) -> str:
        if len(self._topics) > 10_000:
            self._topics.clear()
        return self._topics.setdefault(raw, raw.decode())

    def _relation(self, message: bytes) -> None:
        name_at = message.index(0, 5) + 1
        name_end = message.index(0, name_at)
        name = message[name_at:name_end].decode()
        at = name_end + 4
        names: list[str] = []
        for _ in range(_count(message, name_end + 2)[0]):
            end = message.index(0, at + 1)
            names.append(message[at + 1 : end].decode())
            at = end + 9
        if name != "outbox" or not set(COLUMNS) <= set(names):
            raise UnknownRelation(f"the publication sends {name!r} with columns {', '.join(names)}")
        order = tuple(names.index(column) for column in COLUMNS)
        self._order[message[1:5]] = None if tuple(names) == COLUMNS else order
