"""Payload to JSON text and back, checked by type: orjson for the bytes, msgspec for the types."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from functools import cache
from typing import Any, TypeVar, get_type_hints

import msgspec
import orjson

from streams.errors import MessageError, PayloadInvalid
from streams.events import EventType
from streams.type_errors import explain

E = TypeVar("E")

KEY_BYTES = 1024
_NUL = b"\\u0000"
_BACKSLASH = ord("\\")
_UNITS: dict[Any, str] = {
    **dict.fromkeys((list, tuple, set, frozenset, dict), "entries"),
    **dict.fromkeys((bytes, bytearray), "bytes"),
}
# A moment is the same text in the outbox and in what a handler writes. By itself orjson leaves out
# a dataclass's fields that begin with _, and writes what is no field of it.
_OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_PASSTHROUGH_DATACLASS
_AS_MSGSPEC_HAS_THEM = (Decimal, timedelta, set, frozenset)
_STEP = re.compile(r"([^.\[\]]+)(?![^\[]*\])|\[([^]]*)\]")
# What orjson says of text that is JSON by its grammar and yet holds no value, and what a person is
# told.
_VALUELESS = {
    "surrogate": "a lone surrogate, which is no character",
    "infinity": "a number out of range",
    "depth limit": "values nested too deep",
}
_EXPECTED = {
    "surrogates": "expected text without lone surrogates",
    "64-bit": "expected a number of at most 64 bits",
    "ecursion limit": "expected at most 254 levels of nesting",
}


class Unreadable(MessageError):
    """A payload on the topic that cannot be parsed or validated.

    The reason holds names and types, never a value.
    """


def encode(event: Any, kind: EventType, max_bytes: int) -> tuple[str, str]:
    """The (key, payload text) of an event.

    PayloadInvalid names biz_type, field, type, size and expectation.
    """
    name = kind.biz_type
    try:
        raw = _dumps(event)
    except orjson.JSONEncodeError as error:
        raise PayloadInvalid(f"{name}: {_unencodable(event, str(error))}") from None
    if b"null" in raw and (path := _first(event, _not_finite)):
        raise PayloadInvalid(
            f"{name}: {path!r} is {_shown(_at(event, path))}: expected a finite number"
        )
    plain = orjson.loads(raw)
    try:
        converted = msgspec.convert(plain, kind.payload)
    except msgspec.ValidationError as error:
        field, expected = _explain(error, kind.payload)
        raise PayloadInvalid(
            f"{name}: {field!r} is {_shown(_at(plain, field))}: {expected}"
        ) from None
    except RecursionError:
        raise PayloadInvalid(
            f"{name}: payload is nested too deep, expected at most 254 levels"
        ) from None
    if _NUL in raw and (path := _first(converted, _has_nul)):
        raise PayloadInvalid(
            f"{name}: {path!r} is {_shown(_at(plain, path))}: expected text without NUL"
        )
    plain[kind.key] = _plain_key(plain[kind.key], getattr(converted, kind.key))
    key, stored = _key(plain, kind), orjson.dumps(_without_nulls(plain, kind.payload))
    if len(stored) > max_bytes:
        raise PayloadInvalid(
            f"{name}: payload has {len(stored)} bytes, expected at most {max_bytes}"
        )
    return key, stored.decode()


def decode(raw: bytes | str | None, payload: type[E]) -> E:
    """The payload of one record.

    Unreadable says what is wrong with it, and holds none of its text.
    """
    if raw is None:
        raise Unreadable("the value is null, expected a JSON object", code="null")
    try:
        # A type is Hashable, whatever mypy says
        decoder, opening, opening_text = _decoder(payload)  # type: ignore[arg-type]
        if isinstance(raw, bytes):
            if not raw.isascii():
                # What is not UTF-8 is refused in names, too, and in values that nobody reads
                raw.decode()
            event: E = decoder.decode(opening + raw[1:] if raw.startswith(b"{") else raw)
            nul = _BACKSLASH in raw and _NUL in raw
        else:
            event = decoder.decode(opening_text + raw[1:] if raw.startswith("{") else raw)
            nul = "\\u0000" in raw
    except Exception:  # whatever it is: the careful way finds it again, and says it in our words
        event, nul = _explained(raw, payload), True
    if nul and (path := _first(event, _has_nul)):
        raise Unreadable(f"{path!r} holds a NUL character, which text cannot hold", code="payload")
    return event


def _explained(raw: bytes | str, payload: type[E]) -> E:
    """The payload, decoded with care for what is wrong with it; Unreadable with the reason."""
    try:
        plain = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Unreadable(_unparsable(raw, error), code="json") from None
    try:
        return msgspec.convert(plain, payload)
    except msgspec.ValidationError as error:
        field, expected = _explain(error, payload)
        raise Unreadable(f"{field!r}: {expected}", code="payload") from None
    except MemoryError:  # the process's
        raise
    except Exception as error:  # A __post_init__ may raise anything, and it is the message's fault.
        raise Unreadable(
            f"{payload.__name__} cannot be made of it: {type(error).__name__}", code="payload"
        ) from None


def key_text(value: Any) -> str | None:
    """What a key field holds, as the key of its conversation; None when it can be none."""
    if value is None:
        return None
    try:
        # A date is text, as it was when it was enqueued.
        text = _text_of(value if isinstance(value, str) else orjson.loads(_dumps(value)))
    except orjson.JSONEncodeError:
        return None
    return text if 1 <= len(text.encode()) <= KEY_BYTES and "\0" not in text else None


def key_read(named: bytes, kind: EventType) -> Any:
    """What a payload has in its key field, as the field's type reads it; as it is if that cannot.

    Given is its JSON: a number is not the float that others read. JSONDecodeError when it is none.
    For what of it can be read where the payload as a whole cannot.
    """
    plain = orjson.loads(named)
    try:
        hint = get_type_hints(kind.payload, include_extras=True)[kind.key]
        return msgspec.json.decode(named, type=hint)
    # The type takes no such value, or has names that only its own module knows.
    except (msgspec.DecodeError, NameError, KeyError, TypeError):
        return plain


def unparsable(raw: bytes) -> str:
    """Why these bytes are no JSON text; '' when they are."""
    try:
        orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return _unparsable(raw, error)
    return ""


@cache
def runs_code(payload: type[Any]) -> bool:
    """Whether reading such a payload runs more than msgspec: its own code, or a regular expression.

    That may hang or end the process, as a handler may.
    """
    try:
        info = msgspec.inspect.type_info(payload)
    except (TypeError, NameError):  # names that only its own module knows
        return True
    return _runs_code(info, set())


def _runs_code(info: Any, seen: set[Any]) -> bool:
    kind = getattr(info, "cls", None)
    if kind is not None:
        if kind in seen:
            return False
        seen.add(kind)
        if hasattr(kind, "__post_init__") or isinstance(info, msgspec.inspect.CustomType):
            return True
        if isinstance(info, msgspec.inspect.EnumType) and "_missing_" in vars(kind):
            return True
    if getattr(info, "pattern", None) is not None:
        return True
    parts = [getattr(info, name, None) for name in ("type", "item_type", "key_type", "value_type")]
    parts += [*getattr(info, "types", ()), *getattr(info, "item_types", ())]
    parts += [field.type for field in getattr(info, "fields", ())]
    return any(_runs_code(part, seen) for part in parts if part is not None)


@cache
def _decoder(payload: type[E]) -> tuple[msgspec.json.Decoder[E], bytes, str]:
    """What reads the payload, and how its object begins, instead of with a brace.

    Filling in the defaults of a dataclass takes msgspec as long as everything else. Spelled out as
    nulls they are read in passing; what the record says comes later, and the last one of a name
    counts.
    """
    opening = "{" + "".join([f"{orjson.dumps(name).decode()}:null," for name in _defaults(payload)])  # type: ignore[arg-type]
    return msgspec.json.Decoder(payload), opening.encode(), opening


@cache
def _defaults(payload: type[Any]) -> dict[str, None]:
    """The fields that may be absent or null."""
    return {field.name: None for field in dataclasses.fields(payload) if field.default is None}


def _without_nulls(plain: dict[str, Any], payload: type[Any]) -> dict[str, Any]:
    """The object without its optional fields that are null.

    Absent and null mean the same for an optional field; absent is smaller in the outbox, the WAL
    and Kafka.
    """
    optional = _defaults(payload)  # type: ignore[arg-type]
    return {
        name: value for name, value in plain.items() if value is not None or name not in optional
    }


def _dumps(value: Any) -> bytes:
    """JSON of whatever a payload may hold."""
    return orjson.dumps(value, _plain, _OPTIONS)


def _plain(value: Any) -> Any:
    """What stands in JSON for what orjson does not know."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, _AS_MSGSPEC_HAS_THEM):
        return list(value) if isinstance(value, set | frozenset) else msgspec.to_builtins(value)
    raise TypeError


def _plain_key(given: Any, read: Any) -> Any:
    """A key as whoever reads it writes it: two spellings of one UUID are one conversation."""
    return given if read is None or isinstance(read, str) else orjson.loads(_dumps(read))


def _key(plain: dict[str, Any], kind: EventType) -> str:
    key = plain[kind.key]
    if key is None:
        raise PayloadInvalid(
            f"{kind.biz_type}: {kind.key!r} is None: expected a value, it is the key"
        )
    text = _text_of(key)
    size = len(text.encode())
    if not 1 <= size <= KEY_BYTES:
        raise PayloadInvalid(
            f"{kind.biz_type}: {kind.key!r} is {_shown(key)}, {size} bytes: expected 1 to"
            f" {KEY_BYTES} bytes for a key"
        )
    return text


def _text_of(key: Any) -> str:
    return key if isinstance(key, str) else orjson.dumps(key).decode()


def _explain(error: msgspec.ValidationError, payload: type[Any]) -> tuple[str, str]:
    field, expected = explain(error, payload)
    return field or "payload", expected.replace("`", "")


def _at(value: Any, field: str) -> Any:
    """The value that a path like `items[0].name` names.

    Where msgspec does not say which entry of a dict is meant, it is the whole dict.
    """
    for name, item in _STEP.findall(field):
        if name:
            value = value.get(name) if isinstance(value, dict) else getattr(value, name, value)
        elif item.isdigit() and isinstance(value, list | tuple):
            value = value[int(item)]
    return value


def _shown(value: Any) -> str:
    """What kind of value it is and how large, never what it says: errors end up in logs."""
    kind = f"of type {type(value).__name__}"
    if isinstance(value, str):
        return f"{kind} ({len(value)} characters)"
    return f"{kind} ({len(value)} {_UNITS[type(value)]})" if type(value) in _UNITS else kind


def _unparsable(raw: bytes | str, error: orjson.JSONDecodeError) -> str:
    if isinstance(raw, bytes):
        try:
            raw.decode()
        except UnicodeDecodeError as broken:
            return f"the value is not UTF-8 at byte {broken.start}"
    for part, fault in _VALUELESS.items():
        if part in error.msg:
            return f"the value holds {fault}, at character {error.pos}"
    # error.msg describes the grammar; str(error) would add nothing but position, error.doc is the
    # text itself.
    return f"the value is not JSON: {error.msg} at character {error.pos}"


def _unencodable(event: Any, reason: str) -> str:
    """Which field orjson refuses, for the message to the caller."""
    for field in dataclasses.fields(event):
        value = getattr(event, field.name)
        try:
            _dumps({field.name: value})
        except orjson.JSONEncodeError as error:
            return f"{field.name!r} is {_shown(value)}: {_expectation(str(error))}"
    return _expectation(reason)


def _expectation(reason: str) -> str:
    """orjson's refusal as what would be right."""
    expectations = (expected for part, expected in _EXPECTED.items() if part in reason)
    return next(expectations, f"expected a value that JSON has ({reason})")


def _first(value: Any, wrong: Callable[[Any], bool]) -> str | None:
    """Where the first leaf (or key) is that is `wrong`, as `items[0].name`.

    It works without recursion, however deep the value is.
    """
    rest = [("", value)]
    while rest:
        path, value = rest.pop()
        if dataclasses.is_dataclass(value):
            inner = [
                (f"{path}.{field.name}", getattr(value, field.name))
                for field in dataclasses.fields(value)
            ]
        elif isinstance(value, dict):
            inner = [(f"{path}[...]", each) for pair in value.items() for each in pair]
        elif isinstance(value, list | tuple | set | frozenset):
            inner = [(f"{path}[{index}]", each) for index, each in enumerate(value)]
        elif isinstance(value, msgspec.Struct):
            inner = [(f"{path}.{name}", getattr(value, name)) for name in value.__struct_fields__]
        elif wrong(value):
            return path.lstrip(".") or "payload"
        else:
            continue
        rest += reversed(inner)
    return None


def _has_nul(value: Any) -> bool:
    return isinstance(value, str) and "\x00" in value


def _not_finite(value: Any) -> bool:
    """orjson writes NaN and infinity as null, which would silently be another value."""
    return isinstance(value, float) and not math.isfinite(value)
