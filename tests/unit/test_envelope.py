"""Envelopes into messages, whatever bytes arrive.

Nothing raises, nothing is dropped, and no reason holds text.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from streams import envelope as envelopes
from streams.codec import Unreadable
from streams.envelope import NoEnvelope, conversation, opened
from streams.events import EventType
from streams.registry import discover
from streams.worker.delivery import Delivery
from streams.worker.run.foreign import MOST_MS, Foreign

REGISTRY = discover()
CHAT = REGISTRY.agents["chat_history_persist"].event
PAYLOAD = {"user_id": 1, "conversation_id": "c", "role": "user", "message": "hi"}


@dataclass
class Record:
    value: bytes | None
    key: bytes | None = b"key"
    partition: int = 0
    offset: int = 0
    timestamp: int = 1_700_000_000_123


def envelope(
    outbox_id: object = 7, payload: object = PAYLOAD, biz_type: str = "chat_history_persist"
) -> bytes:
    return orjson.dumps({"outbox_id": outbox_id, "biz_type": biz_type, "payload": payload})


def read(*records: Record) -> list[Delivery]:
    deliveries, rejected = Foreign(REGISTRY, "seed").read(records)
    assert rejected == []
    return deliveries


@pytest.mark.parametrize("outbox_id", [7, "7", "007"])
@pytest.mark.parametrize("payload", [PAYLOAD, orjson.dumps(PAYLOAD).decode()])
def test_an_id_may_be_a_number_or_its_text_and_the_payload_an_object_or_its_text(
    outbox_id: object, payload: object
) -> None:
    [one] = read(Record(envelope(outbox_id, payload), key=None))
    assert one.message is not None
    assert (one.outbox_id, one.key, one.message.payload.message, one.message.source) == (
        7,
        "c",
        "hi",
        "seed",
    )
    assert one.message.created_at.isoformat() == "2023-11-14T22:13:20.123000"


def test_the_payload_is_kept_as_its_producer_wrote_it() -> None:
    text = (
        '{ "user_id":1,"conversation_id":"c", "role":"user","message":"\\u00e9", "more":'
        " 1234567890123456789012 }"
    )
    value = f'{{"outbox_id": 7, "biz_type": "chat_history_persist", "payload": {text}}}'.encode()
    assert opened(value) == (7, "chat_history_persist", text)
    [one] = read(Record(value))
    assert one.to_store is not None
    assert one.to_store.payload == text


def test_the_first_record_of_an_id_counts_and_order_stays() -> None:
    assert [one.outbox_id for one in read(*[Record(envelope(n)) for n in (3, 1, 3, 2, 1)])] == [
        3,
        1,
        2,
    ]


@pytest.mark.parametrize(
    ("timestamp", "kept"), [(-1, 0), (2**62, MOST_MS), (1_700_000_000_123, 1_700_000_000_123)]
)
def test_a_time_that_no_database_takes_is_brought_into_range(timestamp: int, kept: int) -> None:
    [one] = read(Record(envelope(), timestamp=timestamp))
    assert one.message is not None
    assert one.message.created_ms == kept
    assert one.message.created_at.year < 10_000


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "the value is null, expected an envelope"),
        (b"", "the value is not JSON: "),
        (b"\xff", "the value is not UTF-8 at byte 0"),
        (
            b'{"payload": "\\ud800"}',
            "the value holds a lone surrogate, which is no character, at character 13",
        ),
        (
            b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            "the value is nested too deep, expected at most 254 levels",
        ),
        (
            b'{"a": 1e999}',
            (
                "the envelope's 'outbox_id' is missing, expected a whole number from 1 to"
                " 9223372036854775807"
            ),
        ),
        (b"[]", "the value is no envelope: expected object, got array"),
        (b'{"outbox_id": -5}', "the envelope's 'outbox_id' is -5, expected"),
        (b'{"outbox_id": 1.0}', "the envelope's 'outbox_id' is 1.0, expected"),
        (b'{"outbox_id": "secret"}', "the envelope's 'outbox_id' is no number, expected"),
        (b'{"outbox_id": 5}', "the envelope's 'biz_type' is missing, expected text (outbox_id 5)"),
        (
            b'{"outbox_id": 5, "biz_type": 7}',
            "the envelope's 'biz_type' is of type int, expected text (outbox_id 5)",
        ),
        (b'{"outbox_id": 5, "biz_type": "b"}', "the envelope's 'payload' is missing (outbox_id 5)"),
    ],
)
def test_a_value_that_is_no_envelope_says_why(value: bytes | None, reason: str) -> None:
    with pytest.raises(NoEnvelope) as caught:
        opened(value)
    assert str(caught.value).startswith(reason)
    [rejected] = Foreign(REGISTRY, "seed").read([Record(value, partition=3, offset=9)])[1]
    assert (rejected.partition, rejected.offset, rejected.reason) == (3, 9, str(caught.value))


@pytest.mark.parametrize(
    ("payload", "biz_type", "key"),
    [
        ({"conversation_id": "c"}, "chat_history_persist", "c"),
        (orjson.dumps({"conversation_id": "c"}).decode(), "chat_history_persist", "c"),
        ({"conversation_id": 5}, "chat_history_persist", "5"),
        ({"conversation_id": ""}, "chat_history_persist", "key"),
        ({}, "chat_history_persist", "key"),
        ("{", "chat_history_persist", "key"),
        ({"conversation_id": "c"}, "who_knows", "key"),
    ],
)
def test_a_message_that_cannot_be_read_is_of_the_conversation_it_names(
    payload: object, biz_type: str, key: str
) -> None:
    [one] = read(Record(envelope(7, payload, biz_type)))
    assert one.message is None
    assert one.fault is not None
    assert one.key == key


class Floor(Enum):
    """Of a building."""

    FIRST = "1"


@pytest.mark.parametrize(
    ("kind", "sent", "key"),
    [
        (UUID, "6F9619FF-8B86-D011-B42D-00C04FC964FF", "6f9619ff-8b86-d011-b42d-00c04fc964ff"),
        (UUID | None, "6F9619FF8B86D011B42D00C04FC964FF", "6f9619ff-8b86-d011-b42d-00c04fc964ff"),
        (datetime, "2026-01-01T12:00:00+02:00", "2026-01-01T12:00:00+02:00"),
        (datetime, "2026-01-01t12:00:00z", "2026-01-01T12:00:00Z"),
        (date, "2026-01-01", "2026-01-01"),
        (Floor, "1", "1"),
        (Decimal, "1.50", "1.50"),
        (int, 7, "7"),
        (float, 7.5, "7.5"),
        (bool, True, "true"),
        (Annotated[str, Meta(max_length=3)], "abc", "abc"),
    ],
)
def test_a_payload_is_of_the_same_conversation_whether_it_can_be_read_or_not(
    kind: Any, sent: object, key: str
) -> None:
    payload = dataclasses.make_dataclass("Said", [("room", kind), ("n", int)])
    event = EventType("said", "t", "room", payload, "here")
    whole = orjson.dumps({"room": sent, "n": 1}).decode()
    assert envelopes.decoded(whole, event)[0] == key
    assert conversation(whole, event) == key
    assert conversation(orjson.dumps({"room": sent, "n": "q"}).decode(), event) == key


@pytest.mark.parametrize("number", ["1.10", "1e2", "18446744073709551616", "-0", "0.1"])
@pytest.mark.parametrize("kind", [Decimal, int, float, str, Decimal | None])
def test_a_number_is_the_same_key_whether_the_rest_of_it_can_be_read_or_not(
    kind: Any, number: str
) -> None:
    """JSON's numbers are no floats before their type has read them."""
    payload = dataclasses.make_dataclass("Said", [("room", kind), ("n", int)])
    event = EventType("said", "t", "room", payload, "here")
    try:
        key = envelopes.decoded(f'{{"room": {number}, "n": 1}}', event)[0]
    except Unreadable:
        return  # nobody reads it, so nothing can differ
    for rest in ("1", '"q"'):
        assert conversation(f'{{"room": {number}, "n": {rest}}}', event) == key


def test_a_payload_too_deep_for_one_reader_names_its_conversation_all_the_same() -> None:
    deep = "[" * 1015 + "]" * 1015
    assert conversation(f'{{"conversation_id": "c", "x": {deep}}}', CHAT) == "c"


def test_a_payload_in_base64_is_told_from_a_broken_one() -> None:
    """Go's encoding/json writes a []byte so."""
    [one] = read(Record(envelope(7, base64.b64encode(orjson.dumps(PAYLOAD)).decode())))
    assert "it is base64, as Go writes a []byte: expected JSON" in str(one.fault)
    for text in ("eyJ1c2Vy", "{broken", "aGVsbG8="):
        [one] = read(Record(envelope(7, text)))
        assert ("base64" in str(one.fault)) == (text == "eyJ1c2Vy")
        assert one.fault is not None


@pytest.mark.parametrize("key", [None, b"", b"a\0b", b"x" * 1025])
def test_a_key_that_is_none_names_no_conversation(key: bytes | None) -> None:
    [one] = read(Record(envelope(7, {}), key=key))
    assert one.key == ""
    assert conversation("{}", CHAT) is None


@given(
    st.none()
    | st.binary(max_size=60)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["outbox_id", "biz_type", "payload", "conversation_id", "x"]), inner
            )
        ),
    ).map(lambda value: json.dumps(value).encode()),
    st.none() | st.binary(max_size=10),
    st.integers(-(2**63), 2**63 - 1),
)
def test_no_bytes_raise(value: bytes | None, key: bytes | None, timestamp: int) -> None:
    deliveries, rejected = Foreign(REGISTRY, "seed").read([Record(value, key, timestamp=timestamp)])
    assert len(deliveries) + len(rejected) == 1
    assert all((one.message is None) == (one.fault is not None) for one in deliveries)
