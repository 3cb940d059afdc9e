"""What a message is: the payload types that `@event` names, and the batches that handlers receive.

A payload is a frozen dataclass; its type annotations are checked when it is enqueued and again when
it is consumed.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from itertools import takewhile
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

import msgspec
import orjson

from streams.errors import RegistryInvalid

if TYPE_CHECKING:
    from psycopg.types.json import Json

E = TypeVar("E")

_EPOCH = datetime(1970, 1, 1)
_ENCODER = msgspec.json.Encoder()
_COMMA = ord(",")
_MILLISECONDS = [b'.%03d"' % ms for ms in range(1000)]


@dataclass(frozen=True, slots=True)
class EventType:
    """What `@event` declares about a payload class."""

    biz_type: str
    topic: str
    key: str
    payload: type[Any]
    where: str


class Message(msgspec.Struct, Generic[E], frozen=True):
    """One claimed message; `outbox_id` is its identity everywhere.

    `source` is '' for our own outbox.
    """

    outbox_id: int
    key: str
    payload: E
    created_ms: int
    attempts: int = 0
    source: str = ""

    @property
    def created_at(self) -> datetime:
        """When the outbox row was written, UTC without a time zone, in milliseconds."""
        return _EPOCH + timedelta(milliseconds=self.created_ms)


class Batch(Sequence[Message[E]]):
    """The messages of one biz_type that a handler persists in one transaction.

    They are in order for each conversation.
    """

    __slots__ = ("_messages",)

    def __init__(self, messages: Sequence[Message[E]]) -> None:
        self._messages = messages

    @overload
    def __getitem__(self, index: int) -> Message[E]: ...
    @overload
    def __getitem__(self, index: slice) -> Batch[E]: ...
    def __getitem__(self, index: int | slice) -> Message[E] | Batch[E]:
        if isinstance(index, slice):
            return type(self)(self._messages[index])
        return self._messages[index]

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[Message[E]]:
        return iter(self._messages)

    def json(self) -> str:
        """The batch as a JSON array of flat objects.

        Each has outbox_id, source, created_at and the payload's fields.

        Fields at the end that are null may be absent where null is their default: a record set
        reads both as NULL. One parameter for one statement: `FROM json_to_recordset(:batch) AS m
        (outbox_id bigint, ...)`. Binding one text costs a sixth of binding an array per column
        (measured with 1000 rows of 12 columns).
        """
        return self._bytes().decode()

    def parameter(self) -> Json | str:
        """The JSON of `json`, to be bound as a parameter.

        Through psycopg it goes out as it is, without becoming text.
        """
        # Only here: whoever enqueues with another driver needs no psycopg.
        from psycopg.types.json import Json

        return Json(self._bytes(), dumps=_as_it_is)

    def _bytes(self) -> bytearray:
        # Each message of each batch goes through this loop: it is a fifth of what a worker does.
        buffer = bytearray(b"[")
        last = 0, ""
        middle = _middle(*last)
        kind: type[E] | None = None
        end = b""
        for message in self._messages:
            second, ms = divmod(message.created_ms, 1000)
            payload = message.payload
            if second != last[0] or message.source != last[1]:
                last = second, message.source
                middle = _middle(*last)
            buffer += b'{"outbox_id":%d%b%b' % (message.outbox_id, middle, _MILLISECONDS[ms])
            start = len(buffer)
            try:
                # Of one payload at a time msgspec makes JSON three times as fast as orjson.
                _ENCODER.encode_into(payload, buffer, start)
            except TypeError:
                # A subclass of str, say: only a payload's own __post_init__ can have put it there
                buffer[start:] = orjson.dumps(payload, option=orjson.OPT_UTC_Z)
            if len(buffer) == start + 2:
                buffer[start:] = b"},"
                continue
            buffer[start] = _COMMA
            if type(payload) is not kind:
                kind = type(payload)
                # A type is Hashable, whatever mypy says
                end = _nulls(kind)  # type: ignore[arg-type]
            if buffer.endswith(end):
                buffer[-len(end) :] = b"},"
            else:
                buffer += b","
        buffer[1 if len(buffer) == 1 else -1 :] = b"]"  # instead of the last comma
        return buffer


class TextBatch(Batch[E]):
    """What `record` hands to a handler on another driver than psycopg: it binds text."""

    __slots__ = ()

    def parameter(self) -> str:
        """The JSON of `json`."""
        return self.json()


class Ordered(Protocol):
    """What has a place in a conversation: a message of some biz_type, with its key."""

    @property
    def biz_type(self) -> str:
        """Which handler it is for."""

    @property
    def key(self) -> str:
        """Its conversation's."""


M = TypeVar("M", bound=Ordered)


def batches(messages: Sequence[M]) -> list[tuple[str, list[M]]]:
    """One batch for each biz_type, in rounds.

    Wherever the biz_type changes within one conversation another round begins.
    """
    if len({message.biz_type for message in messages}) == 1:
        return [(messages[0].biz_type, list(messages))]
    rounds: list[tuple[str, list[M]]] = []
    current: dict[str, list[M]] = {}
    biz_type_of: dict[str, str] = {}
    for message in messages:
        biz_type = message.biz_type
        if biz_type_of.setdefault(message.key, biz_type) != biz_type:
            rounds += current.items()
            current, biz_type_of = {}, {message.key: biz_type}
        current.setdefault(biz_type, []).append(message)
    return rounds + list(current.items())


def event(biz_type: str, *, topic: str, key: str) -> Callable[[type[E]], type[E]]:
    """Declare a frozen dataclass as the payload of `biz_type`.

    It is published to `topic`, keyed by its field `key`. RegistryInvalid names the class when that
    cannot be.
    """

    def declare(cls: type[E]) -> type[E]:
        where = _place(cls)
        if not isinstance(biz_type, str) or not _BIZ_TYPE.fullmatch(biz_type):
            raise RegistryInvalid(
                f"{where}: biz_type is {biz_type!r}, expected 1 to 100 of a-z, A-Z, 0-9, '.', '_',"
                " '-'"
            )
        if not is_topic(topic):
            raise RegistryInvalid(
                f"{where}: topic is {topic!r}, expected 1 to 249 of a-z, A-Z, 0-9, '.', '_', '-'"
            )
        # Looked up in the class itself: a subclass inherits its parent's fields without being a
        # dataclass.
        if "__dataclass_params__" not in vars(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            raise RegistryInvalid(
                f"{where} is not a frozen dataclass: put @dataclass(frozen=True) below @event"
            )
        if key not in {field.name for field in dataclasses.fields(cls)}:  # type: ignore[arg-type]
            raise RegistryInvalid(f"{where} has no field {key!r}, which @event names as its key")
        _declared[cls] = (
            sys.modules.get(cls.__module__),
            EventType(biz_type, topic, key, cls, where),
        )
        return cls

    return declare


def declared(payload: type[Any]) -> EventType:
    """What `@event` said about this class; RegistryInvalid when it said nothing."""
    try:
        return _declared[payload][1]
    except KeyError:
        kind = f"{payload.__module__}.{payload.__qualname__}"
        raise RegistryInvalid(
            f"{kind} is not an event: decorate its class with @event, and give an object of that"
            " class"
        ) from None


def declared_in(modules: Collection[ModuleType]) -> list[EventType]:
    """The events these modules declare; what an import that failed left behind is nobody's."""
    return [kind for module, kind in _declared.values() if module in modules]


def is_topic(name: str) -> bool:
    """Whether Kafka takes it as the name of a topic."""
    return isinstance(name, str) and bool(_TOPIC.fullmatch(name)) and name not in (".", "..")


BIZ_TYPE_MOST = 100
"""Characters that a biz_type may have."""

_BIZ_TYPE = re.compile(rf"[A-Za-z0-9._-]{{1,{BIZ_TYPE_MOST}}}")
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")

_declared: dict[type[Any], tuple[ModuleType | None, EventType]] = {}


def _place(cls: type[Any]) -> str:
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return f"{cls.__module__}.{cls.__qualname__}" + (f" ({file})" if file else "")


def _as_it_is(
    encoded: Any,
) -> Any:  # any buffer, though psycopg says str or bytes: that would be one more copy
    return encoded


@cache
def _nulls(payload: type[Any]) -> bytes:
    """How an object ends whose last optional fields are all null.

    Nothing else ends like that, for text has no bare quotes.

    Most optional fields are null in most messages; leaving them out spares the server a quarter of
    the INSERT of chat history.
    """
    optional = takewhile(
        lambda field: field.default is None, reversed(dataclasses.fields(payload)[1:])
    )
    names = [orjson.dumps(field.name) for field in optional]
    return b"".join([b",%b:null" % name for name in reversed(names)]) + b"}"


def _middle(second: int, source: str) -> bytes:
    """What stands between a message's id and its milliseconds.

    Messages come in time order: formatting a second once, instead of for every message, takes a
    third off `json`.
    """
    time = (_EPOCH + timedelta(seconds=second)).isoformat()
    return b',"source":%b,"created_at":"%b' % (orjson.dumps(source), time.encode())
