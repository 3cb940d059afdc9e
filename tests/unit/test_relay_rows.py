"""created_at as milliseconds: what PostgreSQL prints, and what no record can carry."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.relay.source.rows import Milliseconds

EPOCH = datetime(1970, 1, 1)


@pytest.mark.parametrize(
    ("text", "millis"),
    [
        (b"2026-01-31 12:00:00", 1769860800000),
        (b"2026-01-31 12:00:00.5", 1769860800500),
        (b"2026-01-31 12:00:00.12", 1769860800120),
        (b"2026-01-31 12:00:00.123", 1769860800123),
        (b"9999-12-31 23:59:59.999", 253402300799999),
        (b"1970-01-01 00:00:01", 1000),
    ],
)
def test_fractions_are_filled_up_to_milliseconds(text: bytes, millis: int) -> None:
    assert Milliseconds()(text) == millis


@pytest.mark.parametrize(
    "text",
    [
        b"infinity",
        b"-infinity",
        b"1970-01-01 00:00:00",
        b"1969-12-31 23:59:59.999",
        b"2026-01-31 12:00:00 BC",
        b"2026-01-31 12:00:00.5 BC",
        b"12026-01-31 12:00:00",
    ],
)
def test_a_time_that_no_record_can_carry_is_none_and_spoils_nothing_after_it(text: bytes) -> None:
    read = Milliseconds()
    good = b"2026-01-31 12:00:00.5"
    assert [read(good), read(text), read(good), read(text)] == [
        1769860800500,
        None,
        1769860800500,
        None,
    ]


@given(st.lists(st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(9999, 12, 31))))
def test_any_sequence_of_times_reads_as_python_reads_it(times: list[datetime]) -> None:
    read = Milliseconds()
    for time in times:
        floor = time.replace(microsecond=time.microsecond // 1000 * 1000)
        fraction = f".{floor.microsecond // 1000:03d}".rstrip("0").rstrip(".")
        text = f"{floor:%Y-%m-%d %H:%M:%S}".rjust(19, "0") + fraction
        assert read(text.encode()) == (floor - EPOCH) // timedelta(milliseconds=1)
