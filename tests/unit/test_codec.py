"""Payloads: what is encoded comes back.

Every refusal says what, where and what would be right.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, field, make_dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum
from functools import cached_property
from typing import Annotated, Any, Literal
from unittest.mock import patch
from uuid import UUID

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams import codec
from streams.agents.chat_history import ChatHistoryPersist
from streams.codec import KEY_BYTES, Unreadable, decode, encode
from streams.errors import PayloadInvalid
from streams.events import Batch, EventType, Message, declared, event

CANARY = "canary-4711"
LIMIT = 900_000
CHAT = declared(ChatHistoryPersist)
BIGINT = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text().filter(lambda text: "\x00" not in text)


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Item:
    name: str
    weight: float | None = None


@event("codec_test", topic="codec-test", key="ref")
@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    ref: str | int | None
    items: tuple[Item, ...] = ()
    colour: Colour = Colour.RED
    size: Literal["s", "m"] | None = None
    price: float | None = None
    tags: dict[str, str] = field(default_factory=dict)
    code: (
        Annotated[str, msgspec.Meta(pattern="^[a-z]+$", description="lower case letters")] | None
    ) = None
    when: datetime | None = None
    more: Any = None


ORDER = declared(Order)


def chat(**changed: Any) -> ChatHistoryPersist:
    values: dict[str, Any] = {"user_id": 1, "conversation_id": "c", "role": "user", "message": "hi"}
    return ChatHistoryPersist(**{**values, **changed})


def refusal(payload: object, kind: EventType = CHAT, limit: int = LIMIT) -> str:
    with pytest.raises(PayloadInvalid) as caught:
        encode(payload, kind, limit)
    assert "\n" not in str(caught.value)
    name, _, reason = str(caught.value).partition(": ")
    assert name == kind.biz_type
    return reason


def unreadable(raw: bytes | str | None, payload: type[Any] = ChatHistoryPersist) -> str:
    with pytest.raises(Unreadable) as caught:
        decode(raw, payload)
    assert CANARY not in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def document(**changed: Any) -> bytes:
    return orjson.dumps(
        {"user_id": 1, "conversation_id": "c", "role": "user", "message": "hi"} | changed
    )


@given(
    payload=st.builds(
        ChatHistoryPersist,
        user_id=BIGINT,
        conversation_id=TEXT.filter(lambda text: 1 <= len(text.encode()) <= KEY_BYTES),
        role=TEXT,
        message=TEXT,
        reasoning_content=st.none() | TEXT,
        reasoning_duration_seconds=st.none() | BIGINT,
        retry_group_id=st.none() | TEXT,
        retry_index=st.none() | BIGINT,
        retry_from_user_message_id=st.none() | BIGINT,
        retry_from_assistant_message_id=st.none() | BIGINT,
        tokens_consumed=st.none() | BIGINT,
    )
)
def test_a_payload_comes_back_from_text_and_from_bytes(payload: ChatHistoryPersist) -> None:
    key, text = encode(payload, CHAT, LIMIT)
    assert key == payload.conversation_id
    assert decode(text, ChatHistoryPersist) == decode(text.encode(), ChatHistoryPersist) == payload


@given(
    payload=st.builds(
        Order,
        ref=TEXT.filter(lambda text: 1 <= len(text.encode()) <= KEY_BYTES) | BIGINT,
        items=st.lists(
            st.builds(Item, TEXT, st.none() | st.floats(allow_nan=False, allow_infinity=False))
        ).map(tuple),
        colour=st.sampled_from(Colour),
        size=st.sampled_from(["s", "m", None]),
        tags=st.dictionaries(TEXT, TEXT),
        when=st.none() | st.datetimes(),
    )
)
def test_nested_payloads_come_back(payload: Order) -> None:
    _, text = encode(payload, ORDER, LIMIT)
    assert decode(text, Order) == payload


def test_unset_optional_fields_are_not_stored() -> None:
    _, text = encode(chat(tokens_consumed=3), CHAT, LIMIT)
    assert list(orjson.loads(text)) == [
        "user_id",
        "conversation_id",
        "role",
        "message",
        "tokens_consumed",
    ]


def test_the_names_that_json_has_and_the_event_has_not_are_ignored() -> None:
    assert decode(document(other={"deep": [1]}, nul="\x00"), ChatHistoryPersist) == chat()


def test_absent_and_null_are_the_same() -> None:
    assert (
        decode(document(retry_index=None), ChatHistoryPersist)
        == decode(document(), ChatHistoryPersist)
        == chat()
    )


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"user_id": "7"}, "'user_id' is of type str (1 characters): expected int, got str"),
        ({"user_id": True}, "'user_id' is of type bool: expected int, got bool"),
        ({"user_id": 1.5}, "'user_id' is of type float: expected int, got float"),
        ({"user_id": None}, "'user_id' is of type NoneType: expected int, got null"),
        ({"user_id": 2**63}, f"'user_id' is of type int: expected int <= {2**63 - 1}"),
        (
            {"user_id": -(2**63) - 1},
            "'user_id' is of type int: expected a number of at most 64 bits",
        ),
        ({"user_id": 2**64}, "'user_id' is of type int: expected a number of at most 64 bits"),
        (
            {"tokens_consumed": 2**63},
            f"'tokens_consumed' is of type int: expected int <= {2**63 - 1}",
        ),
        (
            {"tokens_consumed": math.nan},
            "'tokens_consumed' is of type float: expected a finite number",
        ),
        ({"user_id": math.nan}, "'user_id' is of type float: expected a finite number"),
        (
            {"message": "a\x00b"},
            "'message' is of type str (3 characters): expected text without NUL",
        ),
        (
            {"conversation_id": "\x00"},
            "'conversation_id' is of type str (1 characters): expected text without NUL",
        ),
        (
            {"message": "\ud800"},
            "'message' is of type str (1 characters): expected text without lone surrogates",
        ),
        (
            {"message": b"hi"},
            (
                "'message' is of type bytes (2 bytes): expected a value that JSON has (Type is not"
                " JSON"
            ),
        ),
        (
            {"message": 1j},
            ("'message' is of type complex: expected a value that JSON has (Type is not JSON"),
        ),
        ({"message": ["hi"]}, "'message' is of type list (1 entries): expected str, got array"),
        (
            {"conversation_id": ""},
            "'conversation_id' is of type str (0 characters), 0 bytes: expected 1 to 1024",
        ),
        ({"conversation_id": 7}, "'conversation_id' is of type int: expected str, got int"),
    ],
)
def test_a_refusal_names_field_type_size_and_expectation(
    changed: dict[str, Any], reason: str
) -> None:
    assert refusal(chat(**changed)).startswith(reason)


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        (Order(ref=None), "'ref' is None: expected a value, it is the key"),
        (Order(ref="r", price=math.inf), "'price' is of type float: expected a finite number"),
        (
            Order(ref="r", items=(Item("a"), Item("b", math.nan))),
            "'items[1].weight' is of type float: expected a finite number",
        ),
        (
            Order(ref="r", items=(Item("a"), Item(5))),  # type: ignore[arg-type]
            "'items[1].name' is of type int: expected str, got int",
        ),
        (
            Order(ref="r", items=(Item("a\x00"),)),
            "'items[0].name' is of type str (2 characters): expected text without NUL",
        ),
        (
            Order(ref="r", tags={"a": 1}),  # type: ignore[dict-item]
            "'tags[...]' is of type dict (1 entries): expected str, got int",
        ),
        (
            Order(ref="r", tags={"\x00": "a"}),
            "'tags[...]' is of type dict (1 entries): expected text without NUL",
        ),
        (Order(ref="r", size="xl"), "'size' is of type str (2 characters): expected one of m, s"),  # type: ignore[arg-type]
        (
            Order(ref="r", colour="green"),  # type: ignore[arg-type]
            "'colour' is of type str (5 characters): expected one of red, blue",
        ),
        (
            Order(ref="r", code="A1"),
            "'code' is of type str (2 characters): expected lower case letters",
        ),
        (
            Order(ref="r", when="noon"),  # type: ignore[arg-type]
            "'when' is of type str (4 characters): invalid RFC3339 encoded datetime",
        ),
    ],
)
def test_a_refusal_names_the_place_inside_nested_payloads(order: Order, reason: str) -> None:
    assert refusal(order, ORDER) == reason


@pytest.mark.parametrize(
    "changed",
    [
        {"message": f"{CANARY}\x00"},
        {"message": f"{CANARY}\ud800"},
        {"message": CANARY.encode()},
        {"message": {CANARY}},
        {"message": {CANARY: CANARY}},
        {"message": [CANARY]},
        {"user_id": CANARY},
        {"conversation_id": CANARY * 200},
    ],
)
def test_a_refusal_never_repeats_text(changed: dict[str, Any]) -> None:
    assert CANARY not in refusal(chat(**changed))


@pytest.mark.parametrize(
    "order",
    [
        Order(ref="r", tags={CANARY: 1}),  # type: ignore[dict-item]
        Order(ref="r", tags={f"{CANARY}\x00": "a"}),
        Order(ref="r", colour=CANARY),  # type: ignore[arg-type]
        Order(ref="r", size=CANARY),  # type: ignore[arg-type]
        Order(ref="r", code=CANARY.upper()),
        Order(ref="r", when=CANARY),  # type: ignore[arg-type]
        Order(ref="r", more={CANARY: 1j}),
        Order(ref="r", items=(Item(f"{CANARY}\x00"),)),
    ],
)
def test_a_refusal_never_repeats_text_of_nested_values(order: Order) -> None:
    assert CANARY.lower() not in refusal(order, ORDER).lower()


def test_a_payload_nested_too_deep_is_refused_however_deep() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    assert refusal(Order(ref="r", more=deep), ORDER).endswith(
        "expected at most 254 levels of nesting"
    )


def test_the_size_that_counts_is_what_is_stored() -> None:
    _, text = encode(chat(message="ü" * 100), CHAT, LIMIT)
    size = len(text.encode())
    assert encode(chat(message="ü" * 100), CHAT, size)[1] == text
    assert (
        refusal(chat(message="ü" * 100), limit=size - 1)
        == f"payload has {size} bytes, expected at most {size - 1}"
    )


def test_a_key_has_at_most_1024_bytes() -> None:
    assert encode(chat(conversation_id="ü" * 512), CHAT, LIMIT)[0] == "ü" * 512
    assert "1026 bytes: expected 1 to 1024 bytes for a key" in refusal(
        chat(conversation_id="ü" * 513)
    )


def test_a_number_as_key_is_its_digits() -> None:
    assert encode(Order(ref=-7), ORDER, LIMIT)[0] == "-7"


def test_a_backslash_u_that_was_typed_is_text() -> None:
    payload = chat(message="a \\u0000 typed, and null")
    assert decode(encode(payload, CHAT, LIMIT)[1], ChatHistoryPersist) == payload


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (None, "the value is null, expected a JSON object"),
        (b"", "the value is not JSON: "),
        (b"{" + CANARY.encode(), "the value is not JSON: "),
        (b"NaN", "the value is not JSON: "),
        (b'{"user_id": NaN}', "the value is not JSON: "),
        (
            b'{"message": "\\ud800"}',
            "the value holds a lone surrogate, which is no character, at character 13",
        ),
        (b"\xff\xfe", "the value is not UTF-8 at byte 0"),
        (document()[:-1] + b',"other":"\xff"}', "the value is not UTF-8 at byte 73"),
        (document()[:-1] + b',"retry_ind\xeax":1}', "the value is not UTF-8 at byte 74"),
        (b"[" * 100_000, "the value holds values nested too deep, at character "),
        (
            b'{"other": ' + b"[" * 5000 + b"]" * 5000 + b"}",
            "the value holds values nested too deep, at character ",
        ),
        (b"[]", "'payload': expected object, got array"),
        (b"null", "'payload': expected object, got null"),
        (b"7", "'payload': expected object, got int"),
        (orjson.dumps(CANARY), "'payload': expected object, got str"),
        (b"{}", "'user_id': expected a value, got none"),
        (document(user_id=CANARY), "'user_id': expected int, got str"),
        (document(user_id=2**63), "'user_id': expected int <= 9223372036854775807"),
        (document(message=None), "'message': expected str, got null"),
        (
            document(message=f"{CANARY}\x00"),
            "'message' holds a NUL character, which text cannot hold",
        ),
        (
            document(message=f"{CANARY}\x00").decode(),
            "'message' holds a NUL character, which text cannot hold",
        ),
    ],
)
def test_a_value_that_cannot_be_read_says_why_without_its_text(
    raw: bytes | str | None, reason: str
) -> None:
    assert unreadable(raw).startswith(reason)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"size": CANARY}, "'size': expected one of m, s"),
        ({"colour": f"x' - at `$.{CANARY}`"}, "'colour': expected one of red, blue"),
        ({"code": CANARY}, "'code': expected lower case letters"),
        ({"tags": {CANARY: 1}}, "'tags[...]': expected str, got int"),
        (
            {"tags": {f"{CANARY}\x00": "a"}},
            "'tags[...]' holds a NUL character, which text cannot hold",
        ),
        ({"items": [{"name": "a"}, {CANARY: 1}]}, "'items[1].name': expected a value, got none"),
        ({"when": CANARY}, "'when': invalid RFC3339 encoded datetime"),
    ],
)
def test_reasons_hold_no_message_text_for_any_kind_of_field(
    changed: dict[str, Any], reason: str
) -> None:
    assert unreadable(orjson.dumps({"ref": "r"} | changed), Order) == reason


@dataclass(frozen=True)
class Picky:
    text: str

    def __post_init__(self) -> None:
        if self.text.startswith("v"):
            raise ValueError(f"not {self.text}")
        raise LookupError(self.text)


def test_an_error_of_a_post_init_is_the_fault_of_the_message_and_is_not_repeated() -> None:
    assert unreadable(orjson.dumps({"text": f"v {CANARY}"}), Picky) == (
        "'payload': expected what its __post_init__ accepts"
    )
    assert (
        unreadable(orjson.dumps({"text": CANARY}), Picky)
        == "Picky cannot be made of it: LookupError"
    )


@dataclass(frozen=True)
class Tree:
    children: list[Tree]
    name: str = ""


def test_a_payload_nested_as_deep_as_json_goes_is_read_or_refused() -> None:
    raw: Any = {"children": [], "name": "\x00"}
    for _ in range(100):
        raw = {"children": [raw]}
    assert unreadable(orjson.dumps(raw), Tree).endswith(
        "holds a NUL character, which text cannot hold"
    )
    deep = b'{"children":[' * 511 + b'{"children":[]}' + b"]}" * 511
    with suppress(Unreadable):
        decode(deep, Tree)


@given(
    raw=st.binary()
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(repr).map(str.encode)
)
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    with pytest.raises(Unreadable):
        decode(raw, ChatHistoryPersist)


JSON = st.recursive(
    st.none() | st.booleans() | BIGINT | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def outcome(raw: str | bytes) -> Any:
    try:
        return decode(raw, ChatHistoryPersist)
    except Unreadable as refused:
        return refused.code, str(refused)


@given(
    more=st.lists(st.tuples(st.sampled_from([*ChatHistoryPersist.__slots__, "other"]), JSON)),
    before=st.sampled_from(["", " ", "[", "\ufeff"]),
    after=st.sampled_from(["", "\n", ",", "{}"]),
)
def test_the_fast_reader_reads_a_payload_as_the_careful_one_does(
    more: list[tuple[str, Any]], before: str, after: str
) -> None:
    """Names that come twice too: the last one counts."""
    pairs = [*orjson.loads(document()).items(), *more]
    raw = (
        before
        + "{"
        + ",".join(f'"{name}":{orjson.dumps(value).decode()}' for name, value in pairs)
        + "}"
        + after
    )
    at_once = outcome(raw), outcome(raw.encode())
    with patch.object(codec, "_decoder", side_effect=LookupError):
        assert at_once == (outcome(raw), outcome(raw.encode()))


@pytest.mark.parametrize("zone", [None, UTC, timezone(timedelta(hours=2))])
def test_a_moment_is_the_same_text_in_the_outbox_and_in_a_batch(zone: tzinfo | None) -> None:
    """The audit compares the two where a handler keeps it as text."""
    _, stored = encode(Order(ref="r", when=datetime(2026, 1, 2, 3, 4, 5, 678, zone)), ORDER, LIMIT)
    [in_batch] = orjson.loads(Batch([Message(1, "r", decode(stored, Order), 0)]).json())
    assert in_batch["when"] == orjson.loads(stored)["when"]


def test_a_name_that_comes_twice_counts_once() -> None:
    twice = document()[:-1] + b',"role":"robot","tokens_consumed":1,"tokens_consumed":null}'
    assert decode(twice, ChatHistoryPersist) == chat(role="robot")


@given(values=st.dictionaries(st.sampled_from(list(ChatHistoryPersist.__slots__)), JSON))
def test_any_json_is_read_or_refused(values: dict[str, Any]) -> None:
    try:
        read = decode(document(**values), ChatHistoryPersist)
    except Unreadable as refused:
        assert refused.code in ("payload", "json")
    else:
        assert (
            encode(read, CHAT, LIMIT)
            if 0 < len(read.conversation_id.encode()) <= KEY_BYTES
            else True
        )


@dataclass(frozen=True)
class Inner:
    _note: str
    amounts: set[Decimal] = field(default_factory=set)


@dataclass(frozen=True)
class Private:
    ref: UUID
    _text: str
    inner: tuple[Inner, ...] = ()
    took: timedelta | None = None

    @cached_property
    def shouted(self) -> str:
        return self._text.upper()


PRIVATE = EventType("private", "private", "ref", Private, "here")
REF = UUID("0B0E1F5A-9C1B-4E1D-8A53-2F6B9A1E7C3D")


def test_every_field_is_written_and_nothing_else() -> None:
    """Fields that begin with _ too, nested ones too, and no property that was asked for."""
    inner = Inner("of it", {Decimal("1.10"), Decimal(2)})
    given = Private(REF, "text", (inner,), timedelta(days=1, seconds=2))
    assert given.shouted == "TEXT"
    key, stored = encode(given, PRIVATE, LIMIT)
    assert key == str(REF)
    assert orjson.loads(stored).keys() == {"ref", "_text", "inner", "took"}
    assert decode(stored, Private) == given


@pytest.mark.parametrize("spelled", [REF, str(REF).upper(), REF.hex])
def test_a_key_is_one_however_it_is_spelled(spelled: Any) -> None:
    """Another spelling would be another conversation, and order would be lost."""
    key, stored = encode(Private(spelled, "text"), PRIVATE, LIMIT)
    assert (key, orjson.loads(stored)["ref"]) == (str(REF), str(REF))


@dataclass(frozen=True)
class Measured:
    at: float


def test_a_number_of_a_key_is_one_too() -> None:
    kind = EventType("measured", "measured", "at", Measured, "here")
    assert {encode(Measured(at), kind, LIMIT) for at in (1, 1.0)} == {("1.0", '{"at":1.0}')}


class Odd(Enum):
    A = "a"

    @classmethod
    def _missing_(cls, value: object) -> Odd:
        return cls.A


@dataclass
class Checked:
    size: int

    def __post_init__(self) -> None:
        assert self.size


@pytest.mark.parametrize(
    ("kind", "runs"),
    [
        (str, False),
        (Decimal | None, False),
        (Colour, False),
        (list[Item], False),
        (Annotated[str, msgspec.Meta(max_length=3)], False),
        (Annotated[str, msgspec.Meta(pattern="(a+)+$")], True),
        (Checked, True),
        (dict[str, tuple[Checked | None, ...]], True),
        (Odd, True),
    ],
)
def test_a_payload_whose_class_runs_code_when_it_is_read_is_known(kind: Any, runs: bool) -> None:
    assert codec.runs_code(make_dataclass("Payload", [("value", kind)])) is runs


def test_our_own_payloads_run_none() -> None:
    assert not codec.runs_code(ChatHistoryPersist)
