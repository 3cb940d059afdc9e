"""pgoutput protocol version 1, text format, without I/O: messages in, rows and positions out.

Only what a publication of INSERTs sends is read: Begin, Relation, Insert, Commit; everything else
is passed over. https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any

from streams.errors import UsageError
from streams.relay.source.rows import Header, Milliseconds, Row, Rows, new_row

COLUMNS = ("id", "biz_type", "topic", "key", "payload", "traceparent", "resend_of", "created_at")

_length = Struct("!I").unpack_from
_count = Struct("!H").unpack_from
_end_lsn = Struct("!Q").unpack_from
_BEGIN, _COMMIT, _INSERT, _RELATION = b"BCIR"
_TEXT = ord("t")
_NO_TRACEPARENT: Header = ("traceparent", None)
_NO_RESEND: Header = ("resend_of", None)


class UnknownRelation(UsageError):
    """The stream carries a row of another table, or the outbox lacks one of its columns."""


class Decoder:
    """Collects rows as they come, also of a transaction that has not ended.

    pgoutput sends committed ones only.
    """

    def __init__(self) -> None:
        # Up to this id everything is published: what retention puts back into its place comes once
        # more.
        self.published: Callable[[], int] = lambda: 0
        self._restored = False
        self.in_transaction = False
        self.count = 0
        self.size = 0
        self._rows: list[Row] = []
        self._position: int | None = None
        self._order: dict[bytes, Sequence[int]] = {}
        self._declared = b"?"
        self._kind = self._tail = b"?"
        self._topic = ""
        self._biz_type: Header = ("biz_type", None)
        self._timestamp: int | None = None
        self._milliseconds = Milliseconds()

    def take(self) -> Rows | None:
        """What came since the last call; None when nothing did."""
        if not self._rows and self._position is None:
            return None
        taken = Rows(self._rows, self._position, self.size)
        self._rows, self._position, self.count, self.size = [], None, 0, 0
        return taken

    def ends_soon(self, rows: int, size: int) -> bool:
        """Whether a transaction is open whose end may come before that much was taken."""
        return self.in_transaction and self.count < rows and self.size < size

    def idle(self, position: int) -> None:
        """The server has nothing to send below `position`: nothing of interest lies before it."""
        if not self.in_transaction:
            self._position = position

    def feed(self, message: bytes) -> None:
        """One message of the stream."""
        if message.startswith(self._declared):
            self._keep(message, self._row_as_declared(message))
            return
        kind = message[0]
        if kind == _INSERT:
            self._insert(message)
        elif kind == _COMMIT:
            # Kind, flags, the commit's own LSN, then where it ends: confirming less would send it
            # again.
            self._position = _end_lsn(message, 10)[0]
            self.in_transaction = False
        elif kind == _BEGIN:
            # Its first row tells: whoever puts rows back does nothing else in the transaction.
            self.in_transaction = self._restored = True
        elif kind == _RELATION:
            self._relation(message)

    def _insert(self, message: bytes) -> None:
        order = self._order.get(message[1:5])
        if order is None:
            raise UnknownRelation(
                "the publication sends rows of another table: run ALTER PUBLICATION ..."
                " SET TABLE outbox, and ALTER PUBLICATION ... SET (publish_via_partition_root ="
                " true)"
            )
        self._keep(message, self._row(_columns(message, order)))

    def _keep(self, message: bytes, row: Row) -> None:
        if self._restored:
            if row.id <= self.published():
                return
            self._restored = False
        self._rows.append(row)
        self.count += 1
        self.size += len(message)

    def _row_as_declared(self, message: bytes) -> Row:
        """The row when the columns come in the order of COLUMNS.

        Nine of ten bytes read are copied once.
        """
        at = 13 + _length(message, 9)[0]
        outbox_id = message[13:at]
        # biz_type and topic are mostly those of the row before: compared, not taken apart.
        if not message.startswith(self._kind, at):
            self._remember_kind(message, at)
        start = at + len(self._kind) + 5
        at = start + _length(message, start - 4)[0]
        key = message[start:at]
        start = at + 5
        at = start + _length(message, start - 4)[0]
        payload = message[start:at]
        # So is the rest: no traceparent, no resend_of, and the time.
        tail = message[at:]
        if tail != self._tail:
            if not tail.startswith(b"nn"):
                return self._row(_columns(message, range(len(COLUMNS))))
            self._tail, self._timestamp = tail, self._milliseconds(tail[7:])
        headers = [("id", outbox_id), self._biz_type, _NO_TRACEPARENT, _NO_RESEND]
        return new_row((self._topic, key, payload, self._timestamp, headers))

    def _remember_kind(self, message: bytes, at: int) -> None:
        middle = at + 5 + _length(message, at + 1)[0]
        end = middle + 5 + _length(message, middle + 1)[0]
        self._kind = message[at:end]
        self._biz_type = ("biz_type", message[at + 5 : middle])
        self._topic = message[middle + 5 : end].decode()

    def _row(self, columns: list[Any]) -> Row:
        outbox_id, biz_type, topic, key, payload, traceparent, resend_of, created_at = columns
        headers = [
            ("id", outbox_id),
            ("biz_type", biz_type),
            ("traceparent", traceparent),
            ("resend_of", resend_of),
        ]
        return Row(topic.decode(), key, payload, self._milliseconds(created_at), headers)

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
        if name != "outbox":
            return  # pgoutput describes a leaf partition too, though every row names the root
        if not set(COLUMNS) <= set(names):
            missing = ", ".join(sorted(set(COLUMNS) - set(names)))
            raise UnknownRelation(
                f"the publication sends the outbox without {missing}: run `streams migrate`"
            )
        oid = message[1:5]
        self._order[oid] = tuple(names.index(column) for column in COLUMNS)
        if tuple(names) == COLUMNS:
            self._declared = b"I" + oid
        elif self._declared == b"I" + oid:
            self._declared = b"?"


def _columns(message: bytes, order: Sequence[int]) -> list[bytes | None]:
    """The columns of an Insert as text, those of COLUMNS in their order."""
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
    return [columns[position] for position in order]
