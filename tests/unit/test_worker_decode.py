"""Records into messages: whatever bytes arrive, nothing raises and nothing is dropped."""

from __future__ import annotations

from dataclasses import dataclass, field

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.registry import discover
from streams.worker.run import decode
from streams.worker.run.decode import read

REGISTRY = discover()
GOOD = orjson.dumps({"user_id": 1, "conversation_id": "c", "role": "user", "message": "hi"})


@dataclass
class Record:
    headers: tuple[tuple[str, bytes | None], ...]
    key: bytes | None = b"c"
    value: bytes | None = GOOD
    offset: int = 0
    partition: int = 0
    timestamp: int = 1_700_000_000_123
    timestamp_type: int = 0
    extra: dict[str, str] = field(default_factory=dict)


def record(
    outbox_id: object,
    *,
    resend_of: object = None,
    biz_type: bytes = b"chat_history_persist",
    **more: object,
) -> Record:
    raw = None if outbox_id is None else str(outbox_id).encode()
    root = None if resend_of is None else str(resend_of).encode()
    headers = (("id", raw), ("biz_type", biz_type), ("traceparent", None), ("resend_of", root))
    return Record(headers, **more)  # type: ignore[arg-type]


def test_the_first_record_of_an_id_counts_and_order_stays() -> None:
    deliveries, rejected = read([record(3), record(1), record(3), record(2), record(1)], REGISTRY)
    assert [one.outbox_id for one in deliveries] == [3, 1, 2]
    assert rejected == []
    message = deliveries[0].message
    assert message is not None
    assert message.created_at.isoformat() == "2023-11-14T22:13:20.123000"


def test_a_resend_is_known_by_its_root() -> None:
    [one], _ = read([record(9, resend_of=4)], REGISTRY)
    assert (one.outbox_id, one.record_id, one.resend) == (4, 9, True)


def test_headers_in_another_order_or_missing_are_looked_up() -> None:
    shuffled = Record((("resend_of", None), ("biz_type", b"chat_history_persist"), ("id", b"5")))
    bare = Record(())
    deliveries, rejected = read([shuffled, bare], REGISTRY)
    assert [one.outbox_id for one in deliveries] == [5]
    assert [one.reason for one in rejected] == ["header 'id' is not an outbox id: missing"]


def test_a_header_that_no_biz_type_can_have_is_not_remembered() -> None:
    before = decode._remembered_text.cache_info().currsize
    deliveries, _ = read([record(each, biz_type=b"%d" % each * 1000) for each in (1, 2)], REGISTRY)
    assert [delivery.biz_type for delivery in deliveries] == ["1" * 1000, "2" * 1000]
    assert decode._remembered_text.cache_info().currsize == before


def test_an_unknown_biz_type_names_what_is_known() -> None:
    [one], _ = read([record(1, biz_type=b"nope")], REGISTRY)
    assert one.fault is not None
    assert str(one.fault) == "unknown biz_type 'nope': expected one of chat_history_persist"


@given(
    st.lists(
        st.builds(
            Record,
            headers=st.lists(
                st.tuples(
                    st.sampled_from(["id", "biz_type", "resend_of", "x"]),
                    st.none() | st.binary(max_size=30),
                ),
                max_size=5,
            ).map(tuple),
            key=st.none() | st.binary(max_size=10),
            value=st.none()
            | st.binary(max_size=50)
            | st.text().map(lambda text: orjson.dumps({"message": text, "user_id": 1})),
        ),
        max_size=20,
    )
)
def test_no_bytes_raise(records: list[Record]) -> None:
    deliveries, rejected = read(records, REGISTRY)
    assert len(deliveries) + len(rejected) <= len(records)
    assert all((one.message is None) == (one.fault is not None) for one in deliveries)


class PanicException(BaseException):
    """As an extension in Rust raises it."""


def test_what_a_payloads_own_code_lets_out_costs_its_message_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It ended the topic's agent in silence; memory that is not there is the process's trouble."""

    def raises(error: type[BaseException]) -> None:
        def parse(raw: object, payload: object) -> None:
            raise error

        monkeypatch.setattr(decode, "decode", parse)

    raises(PanicException)
    [one], _ = read([record(3)], REGISTRY)
    assert (one.message, one.fault and one.fault.code) == (None, "PanicException")
    raises(MemoryError)
    with pytest.raises(MemoryError):
        read([record(3)], REGISTRY)
