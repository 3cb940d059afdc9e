"""Batches that aiokafka cannot decode: names of headers change, and nothing else does."""

from __future__ import annotations

import struct
from typing import Any
from unittest import mock

import pytest
from aiokafka.record.default_records import (
    DefaultRecordBatch,
    _DefaultRecordBatchBuilderPy,
    _DefaultRecordBatchPy,
)
from faust.types import TP

from streams.worker.driver.undecodable import decoded
from tests.fixtures.publish import Odd

PLAIN: list[tuple[str, Any]] = [("id", b"1"), ("biz_type", b"x")]
ODD: list[tuple[str, Any]] = [*PLAIN, (Odd("x"), Odd.NAME)]
RECORDS: list[tuple[bytes | None, bytes | None, list[tuple[str, Any]]]] = [
    (b"k", b"plain", PLAIN),
    (Odd.NAME, b"value " + Odd.NAME, ODD),
    (None, Odd.NAME, [("a", None)]),
    (b"k", None, [*ODD, (Odd("y"), None), ("last", b"1")]),
]


def batch(compression: int) -> bytes:
    builder = _DefaultRecordBatchBuilderPy(2, compression, 0, -1, -1, -1, 1 << 16)
    for offset, (key, value, headers) in enumerate(RECORDS):
        assert builder.append(offset, 1000 + offset, key, value, headers)
    return bytes(builder.build())


@pytest.mark.parametrize("compression", range(5))
def test_the_names_alone_are_changed(compression: int, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UnicodeDecodeError):
        list(DefaultRecordBatch(batch(compression)))
    records = list(decoded(batch(compression), TP("topic", 3)))
    assert [(one.offset, one.timestamp) for one in records] == [(n, 1000 + n) for n in range(4)]
    assert [(one.key, one.value) for one in records] == [record[:2] for record in RECORDS]
    assert [name for one in records for name, _ in one.headers if name.startswith("?")] == [
        "??"
    ] * 3
    assert all(one.headers[:2] == PLAIN for one in (records[0], records[1], records[3]))
    assert records[3].headers[-1] == ("last", b"1")
    assert [vars(line)["offset"] for line in caplog.records] == [1, 3]


def test_nothing_but_the_name_is_touched_whatever_its_bytes_are() -> None:
    """A name's bytes may be those of a length behind it, or of its value."""
    for name, value in (
        (b"\xe4", b"v" * 114),
        (b"\xc8", b"v" * 100),
        (b"\xff", b"\xff"),
        (b"\xd0", b"\xd0" * 104),
    ):
        builder = _DefaultRecordBatchBuilderPy(2, 0, 0, -1, -1, -1, 1 << 16)
        odd = Odd("x")
        odd.NAME = name
        builder.append(0, 1000, name, name, [(odd, value), ("id", b"7")])
        [record] = decoded(bytes(builder.build()), TP("topic", 0))
        assert (record.key, record.value, record.headers) == (
            name,
            name,
            [("?", value), ("id", b"7")],
        )


def test_names_are_read_once_however_many_there_are() -> None:
    names = []
    for number in range(20_000):
        names.append(Odd("x"))
        names[-1].NAME = b"\xff%d" % number
    builder = _DefaultRecordBatchBuilderPy(2, 0, 0, -1, -1, -1, 1 << 20)
    builder.append(0, 1000, b"k", b"v", [(name, None) for name in names])
    with mock.patch.object(
        _DefaultRecordBatchPy,
        "_read_msg",
        autospec=True,
        side_effect=_DefaultRecordBatchPy._read_msg,
    ) as reads:
        [record] = decoded(bytes(builder.build()), TP("topic", 0))
    assert len(record.headers) == len(names)
    assert reads.call_count == 2


def test_a_batch_that_was_cut_off_is_left_for_the_next_fetch() -> None:
    whole = batch(0)
    for size in (0, 5, len(whole) - 1):
        assert list(decoded(whole[:size], TP("topic", 0))) == []
        assert len(list(decoded(whole + whole[:size], TP("topic", 0)))) == len(RECORDS)


def test_records_of_aborted_transactions_are_left_out() -> None:
    """Those of other producers and later ones of the same producer are not."""
    batches = [
        _of(producer=7, at=0), _of(producer=8, at=1), _of(producer=7, at=2), _of(producer=7, at=3,
        control=True),
        _of(producer=7, at=4), _of(producer=-1, at=5), _of(producer=8, at=6, control=True),
        _of(producer=7, at=7),
    ]  # fmt: skip
    fetched = b"".join(batches)
    assert [one.offset for one in decoded(fetched, TP("topic", 0))] == [0, 1, 2, 4, 5, 7]
    assert [one.offset for one in decoded(fetched, TP("topic", 0), [(7, 0)])] == [1, 4, 5, 7]
    assert [one.offset for one in decoded(fetched, TP("topic", 0), [(7, 7), (8, 1)])] == [
        0,
        2,
        4,
        5,
    ]


def _of(producer: int, at: int, *, control: bool = False) -> bytes:
    """A batch of one record at this offset; -1 is a producer without transactions."""
    builder = _DefaultRecordBatchBuilderPy(2, 0, int(producer >= 0), producer, 0, 0, 1 << 16)
    builder.append(0, 1000, b"k", b"v", [])
    built = bytearray(builder.build())
    struct.pack_into(">q", built, 0, at)
    if control:
        (attributes,) = struct.unpack_from(">h", built, ATTRIBUTES)
        struct.pack_into(">h", built, ATTRIBUTES, attributes | _DefaultRecordBatchPy.CONTROL_MASK)
    return bytes(built)


# Behind the base offset, the length, the leader's epoch, the magic byte and the checksum.
ATTRIBUTES = struct.calcsize(">qiibI")
