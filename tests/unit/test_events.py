"""Events: what may be declared, and what a batch is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from enum import Enum
from typing import Any
from uuid import UUID

import orjson
import pytest
from psycopg.types.json import Json

from streams.errors import RegistryInvalid
from streams.events import Batch, Message, TextBatch, declared, event


@dataclass(frozen=True)
class Fine:
    ref: str


@dataclass
class NotFrozen:
    ref: str


class NotADataclass:
    ref: str


class Child(Fine):
    more: int


def declaration(**changed: Any) -> Callable[[type[Any]], type[Any]]:
    values: dict[str, Any] = {
        "biz_type": "events_test",
        "topic": "events-test",
        "key": "ref",
    } | changed
    return event(values["biz_type"], topic=values["topic"], key=values["key"])


@pytest.mark.parametrize("cls", [NotFrozen, NotADataclass, Child])
def test_only_a_frozen_dataclass_can_be_an_event(cls: type[Any]) -> None:
    with pytest.raises(
        RegistryInvalid, match=rf"test_events\.{cls.__name__} \(.*\) is not a frozen data"
    ):
        declaration()(cls)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"key": "reff"}, "has no field 'reff', which @event names as its key"),
        ({"biz_type": ""}, "biz_type is '', expected 1 to 100 of"),
        ({"biz_type": "a b"}, "biz_type is 'a b', expected"),
        ({"biz_type": None}, "biz_type is None, expected"),
        ({"topic": "a b"}, "topic is 'a b', expected 1 to 249 of"),
        ({"topic": ".."}, "topic is '..', expected"),
        ({"topic": "a" * 250}, "topic is 'aaa"),
        ({"topic": "a\n"}, r"topic is 'a\n', expected"),
    ],
)
def test_a_bad_declaration_names_the_class_and_what_is_wrong(
    changed: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RegistryInvalid) as caught:
        declaration(**changed)(Fine)
    assert str(caught.value).startswith(f"{__name__}.Fine ({__file__})")
    assert reason in str(caught.value)


def test_a_declared_event_is_known_and_any_other_class_is_refused() -> None:
    event_type = declared(declaration()(Fine))
    assert (event_type.biz_type, event_type.topic, event_type.key, event_type.payload) == (
        "events_test",
        "events-test",
        "ref",
        Fine,
    )
    with pytest.raises(
        RegistryInvalid, match=r"test_events\.NotADataclass is not an event: decorate it"
    ):
        declared(NotADataclass)


def messages(*refs: str) -> Batch[Fine]:
    return Batch(
        [Message(7 + index, ref, Fine(ref), 1_700_000_000_123) for index, ref in enumerate(refs)]
    )


def test_a_batch_is_a_sequence_of_messages() -> None:
    batch = messages("a", "b", "c")
    assert len(batch) == 3
    assert batch[0].payload.ref == "a"
    assert [message.key for message in batch] == ["a", "b", "c"]
    assert isinstance(batch[1:], Batch)
    assert [message.outbox_id for message in batch[1:]] == [8, 9]


def test_a_message_knows_when_its_row_was_written() -> None:
    assert messages("a")[0].created_at == datetime(2023, 11, 14, 22, 13, 20, 123_000)


@dataclass(frozen=True)
class Empty:
    pass


def test_a_batch_as_json_is_flat() -> None:
    head = {"outbox_id": 7, "source": "", "created_at": "2023-11-14T22:13:20.123"}
    assert orjson.loads(messages('"ü').json()) == [{**head, "ref": '"ü'}]
    assert orjson.loads(Batch[Fine]([]).json()) == []
    assert orjson.loads(Batch([Message(7, "", Empty(), 1_700_000_000_123)]).json()) == [head]
    foreign = Message(7, "a", Fine("a"), 1_700_000_000_007, source='old "one"')
    assert orjson.loads(Batch([foreign]).json())[0] | {"ref": ""} == {
        "outbox_id": 7,
        "source": 'old "one"',
        "created_at": "2023-11-14T22:13:20.007",
        "ref": "",
    }


@dataclass(frozen=True)
class Optional:
    ref: str | None = None
    count: int = 7
    note: str | None = None
    more: list[Any] | None = None


@pytest.mark.parametrize(
    ("payload", "absent"),
    [
        (Optional("a"), {"note", "more"}),
        (Optional("a", note="b"), set[str]()),
        (Optional("a", more=[]), set[str]()),
        (Optional(), {"note", "more"}),
        (Optional(note=""), set[str]()),
        (Optional(',"note":null,"more":null}'), {"note", "more"}),
        (Optional("a", note=',"more":null}'), set[str]()),
    ],
)
def test_a_batch_as_json_may_lack_nulls_at_the_end(payload: Optional, absent: set[str]) -> None:
    """A record set reads both as NULL."""
    pair = orjson.loads(
        Batch([Message(1, "a", payload, 0), Message(2, "a", Optional("b", note="c"), 0)]).json()
    )
    assert (
        pair[0].keys()
        == {"outbox_id", "source", "created_at", "ref", "count", "note", "more"} - absent
    )
    assert (
        Optional(**{name: pair[0][name] for name in {"ref", "count", "note", "more"} - absent})
        == payload
    )
    assert (pair[1]["outbox_id"], pair[1]["ref"], pair[1]["note"], pair[1]["more"]) == (
        2,
        "b",
        "c",
        None,
    )


class Loud(str):
    __slots__ = ()


@pytest.mark.parametrize("ref", ["", '"\\ü\u2028', Loud("a")])
def test_a_batch_as_a_parameter_is_its_json(ref: str) -> None:
    """What no message of a topic can be, a payload's own code can make of it."""
    batch = messages("a", ref, "b")
    parameter = batch.parameter()
    assert isinstance(parameter, Json)
    assert parameter.dumps is not None
    assert parameter.dumps(parameter.obj) == batch.json().encode()
    assert [one["ref"] for one in orjson.loads(batch.json())] == ["a", ref, "b"]
    text = TextBatch(list(batch))
    assert text.parameter() == text[:].parameter() == batch.json()


@dataclass(frozen=True)
class Inner:
    _of: UUID
    at: datetime | date | time


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True)
class Nested:
    inner: list[Inner]
    colour: Colour
    share: float | None
    more: dict[str, Any]


def test_a_batch_holds_every_kind_of_value_as_json_has_it() -> None:
    noon = time(12, 30, 15, 250_000)
    moments: list[datetime | date | time] = [
        datetime(2026, 1, 2, 3, 4, 5, 6, UTC),
        datetime(2026, 1, 2),
        date(2026, 1, 2),
        noon,
    ]
    payload = Nested(
        [Inner(UUID(int=1), at) for at in moments], Colour.RED, 1e16, {"a": [None, True, 2**63]}
    )
    [in_batch] = orjson.loads(Batch([Message(1, "a", payload, 0)]).json())
    assert [one["at"] for one in in_batch["inner"]] == [
        "2026-01-02T03:04:05.000006Z",
        "2026-01-02T00:00:00",
        "2026-01-02",
        "12:30:15.250000",
    ]
    assert {one["_of"] for one in in_batch["inner"]} == {str(UUID(int=1))}
    assert (in_batch["colour"], in_batch["share"], in_batch["more"]) == ("red", 1e16, payload.more)


def test_a_moment_before_1970_is_written_as_a_moment() -> None:
    [in_batch] = orjson.loads(Batch([Message(1, "a", Fine("a"), -1)]).json())
    assert in_batch["created_at"] == "1969-12-31T23:59:59.999"
