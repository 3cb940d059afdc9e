"""The pgoutput decoder: rows as they come, positions at commits."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import pytest

from streams.relay.source.cdc import ROWS, CdcSource
from streams.relay.source.pgoutput import COLUMNS, Decoder, UnknownRelation
from streams.relay.source.rows import Row, Rows

OID = 77


def relation(columns: tuple[str, ...] = COLUMNS, name: str = "outbox", oid: int = OID) -> bytes:
    described = b"".join(
        b"\x01" + column.encode() + b"\0" + struct.pack("!Ii", 25, -1) for column in columns
    )
    return (
        b"R"
        + struct.pack("!I", oid)
        + b"public\0"
        + name.encode()
        + b"\0d"
        + struct.pack("!H", len(columns))
        + described
    )


def insert(*values: bytes | None, oid: int = OID) -> bytes:
    columns = b"".join(
        b"n" if value is None else b"t" + struct.pack("!I", len(value)) + value for value in values
    )
    return b"I" + struct.pack("!I", oid) + b"N" + struct.pack("!H", len(values)) + columns


def begin() -> bytes:
    return b"B" + struct.pack("!QqI", 90, 0, 7)


def commit(end: int) -> bytes:
    return b"C" + struct.pack("!BQQq", 0, end - 8, end, 0)


PLAIN = (b"5", b"chat", b"chat-history", b"c1", b'{"a": 1}', None, None, b"2026-01-31 12:00:00.5")
TRACED = (b"6", b"chat", b"other", b"c2", b"{}", b"00-ab-cd-01", b"5", b"2026-01-31 12:00:00")
PLAIN_ROW = Row(
    "chat-history",
    b"c1",
    b'{"a": 1}',
    1769860800500,
    [("id", b"5"), ("biz_type", b"chat"), ("traceparent", None), ("resend_of", None)],
)
TRACED_ROW = Row(
    "other",
    b"c2",
    b"{}",
    1769860800000,
    [("id", b"6"), ("biz_type", b"chat"), ("traceparent", b"00-ab-cd-01"), ("resend_of", b"5")],
)


def decoded(*messages: bytes) -> Rows | None:
    decoder = Decoder()
    for message in messages:
        decoder.feed(message)
    return decoder.take()


def test_rows_of_a_committed_transaction_lead_up_to_the_end_of_its_commit() -> None:
    read = decoded(relation(), begin(), insert(*PLAIN), insert(*TRACED), commit(120))
    assert read is not None
    assert (read.rows, read.position) == ([PLAIN_ROW, TRACED_ROW], 120)


def test_rows_are_given_out_before_their_transaction_ends() -> None:
    decoder = Decoder()
    for message in (relation(), begin(), insert(*PLAIN)):
        decoder.feed(message)
    first = decoder.take()
    assert first is not None
    assert (first.rows, first.position) == ([PLAIN_ROW], None)
    decoder.feed(commit(120))
    assert decoder.take() == Rows([], 120, 0)
    assert decoder.take() is None


def test_several_transactions_are_given_out_together_with_the_last_position() -> None:
    read = decoded(
        relation(),
        begin(),
        insert(*PLAIN),
        commit(120),
        begin(),
        insert(*TRACED),
        commit(160),
        begin(),
        insert(*PLAIN),
    )
    assert read is not None
    assert (len(read.rows), read.position) == (3, 160)


def test_the_row_names_itself_and_the_message_it_resends() -> None:
    assert (PLAIN_ROW.id, PLAIN_ROW.root_id, PLAIN_ROW.biz_type) == (5, 5, "chat")
    assert (TRACED_ROW.id, TRACED_ROW.root_id) == (6, 5)


@pytest.mark.parametrize(("values", "row"), [(PLAIN, PLAIN_ROW), (TRACED, TRACED_ROW)])
def test_columns_are_found_by_name_whatever_their_order(
    values: tuple[bytes | None, ...], row: Row
) -> None:
    columns = ("added", *reversed(COLUMNS))
    read = decoded(relation(columns), begin(), insert(b"x", *reversed(values)), commit(9))
    assert read is not None
    assert read.rows == [row]


def test_a_relation_described_again_is_read_by_its_new_columns() -> None:
    read = decoded(
        relation(),
        begin(),
        insert(*PLAIN),
        relation((*COLUMNS, "added")),
        insert(*PLAIN, b"x"),
        commit(9),
    )
    assert read is not None
    assert read.rows == [PLAIN_ROW, PLAIN_ROW]


def test_rows_alternating_between_topics_keep_their_own() -> None:
    other = (b"7", b"note", b"notes", *PLAIN[3:])
    read = decoded(relation(), begin(), insert(*PLAIN), insert(*other), insert(*PLAIN), commit(9))
    assert read is not None
    assert [(row.topic, row.biz_type, row.id) for row in read.rows] == [
        ("chat-history", "chat", 5),
        ("notes", "note", 7),
        ("chat-history", "chat", 5),
    ]


def test_an_idle_server_moves_the_position_but_not_within_a_transaction() -> None:
    decoder = Decoder()
    decoder.idle(50)
    assert decoder.take() == Rows([], 50, 0)
    decoder.feed(begin())
    decoder.idle(60)
    assert decoder.take() is None


def test_the_description_of_a_partition_is_passed_over() -> None:
    read = decoded(
        relation(), relation(name="outbox_0", oid=78), begin(), insert(*PLAIN), commit(9)
    )
    assert read is not None
    assert read.rows == [PLAIN_ROW]


def test_a_row_of_another_table_stops_the_relay_with_what_mends_it() -> None:
    with pytest.raises(UnknownRelation, match="ALTER PUBLICATION"):
        decoded(relation(name="orders", oid=78), begin(), insert(*PLAIN, oid=78))


def test_an_outbox_without_a_needed_column_is_named() -> None:
    with pytest.raises(UnknownRelation, match="without key"):
        decoded(relation(tuple(column for column in COLUMNS if column != "key")))


def test_other_messages_are_passed_over() -> None:
    assert decoded(b"O" + bytes(20), b"T" + bytes(20), b"Y" + bytes(20), b"M" + bytes(20)) is None


def read_once(*messages: bytes) -> Rows | None:
    """What one reading takes of a stream that has all of these messages."""
    left = [b"w" + bytes(24) + message for message in messages]

    def get_copy_data(_: int) -> tuple[int, memoryview]:
        return (len(left[0]), memoryview(left.pop(0))) if left else (0, memoryview(b""))

    source: Any = CdcSource("", slot="s", publication="p")
    source._pgconn = SimpleNamespace(get_copy_data=get_copy_data, consume_input=lambda: None)
    rows: Rows | None = source._read()
    return rows


def test_a_reading_goes_on_to_the_end_of_a_transaction_that_is_near() -> None:
    """Whoever was stopped between its last row and its COMMIT sent all of it again."""
    rows = read_once(
        relation(), begin(), *[insert(*PLAIN)] * ROWS, commit(120), begin(), insert(*PLAIN)
    )
    assert rows is not None
    assert (len(rows.rows), rows.position) == (ROWS, 120)


def test_a_reading_of_a_long_transaction_ends_before_it() -> None:
    rows = read_once(relation(), begin(), *[insert(*PLAIN)] * (3 * ROWS), commit(120))
    assert rows is not None
    assert (len(rows.rows), rows.position) == (2 * ROWS, None)


def test_what_retention_puts_back_is_not_handed_over_again() -> None:
    """A transaction's first row tells.

    What a business transaction wrote before the floor had passed it comes whole.
    """
    decoder = Decoder()
    decoder.published = lambda: 5
    newer = (b"7", *PLAIN[1:])
    messages = [relation(), begin(), insert(*PLAIN), insert(*PLAIN), commit(110)]
    for message in [*messages, begin(), insert(*newer), insert(*PLAIN), commit(120)]:
        decoder.feed(message)
    found = decoder.take()
    assert found is not None
    assert [row.id for row in found.rows] == [7, 5]
    assert found.position == 120
