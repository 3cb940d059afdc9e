"""Payload to JSON text and back, checked by type on both sides: orjson for the bytes, msgspec for the types."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any, TypeVar

import msgspec
import orjson

from streams.errors import MessageError, PayloadInvalid
from streams.events import EventType

E = TypeVar("E")

SHOWN = 80  # characters of a refused value that its error repeats to the caller
KEY_BYTES = 1024
_NUL = b"\\u0000"


class Unreadable(MessageError):
    """A payload on the topic that cannot be parsed or validated; the reason holds names and types, never a value."""


def encode(event: Any, kind: EventType, max_bytes: int) -> tuple[str, str]:
    """The (key, payload text) of an event; PayloadInvalid names biz_type, field, value and expectation."""
    name = kind.biz_type
    try:
        raw = orjson.dumps(event)
    except orjson.JSONEncodeError as error:
        raise PayloadInvalid(f"{name}: {_unencodable(event) or error}") from None
    if len(raw) > max_bytes:
        raise PayloadInvalid(f"{name}: payload has {len(raw)} bytes, expected at most {max_bytes}")
    plain = orjson.loads(raw)
    try:
        msgspec.convert(plain, kind.payload)
    except msgspec.ValidationError as error:
        field, expected = _explain(error)
        raise PayloadInvalid(f"{name}: {field!r} is {_shown(_at(plain, field))}: {expected}") from None
    if _NUL in raw and (field := _nul_field(plain)):
        raise PayloadInvalid(f"{name}: {field!r} holds a NUL character, expected text without \\u0000")
    return _key(plain, kind), orjson.dumps(_without_nulls(plain, kind.payload)).decode()


def decode(raw: bytes | str | None, payload: type[E]) -> E:
    """The payload of one record; Unreadable says what is wrong with it and holds none of its text."""
    if raw is None:
        raise Unreadable("the value is null, expected a JSON object", code="null")
    try:
        plain = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Unreadable(_unparsable(raw, error), code="json") from None
    if isinstance(plain, dict):
        plain = _defaults(payload) | plain
    try:
        found = msgspec.convert(plain, payload)
    except msgspec.ValidationError as error:
        field, expected = _explain(error)
        raise Unreadable(f"{field!r}: {expected}", code="payload") from None
    if (_NUL if isinstance(raw, bytes) else "\\u0000") in raw and (field := _nul_field(plain)):  # type: ignore[operator]
        raise Unreadable(f"{field!r} holds a NUL character, which text cannot hold", code="payload")
    return found


@cache
def _defaults(payload: type[Any]) -> dict[str, None]:
    """The fields that may be absent or null: spelling them out makes msgspec's `convert` three times as fast."""
    return {field.name: None for field in dataclasses.fields(payload) if field.default is None}


def _without_nulls(plain: dict[str, Any], payload: type[Any]) -> dict[str, Any]:
    """Absent and null mean the same for an optional field: absent is smaller in the outbox, the WAL and Kafka."""
    optional = _defaults(payload)
    return {name: value for name, value in plain.items() if value is not None or name not in optional}


def _key(plain: dict[str, Any], kind: EventType) -> str:
    key = plain[kind.key]
    text = key if isinstance(key, str) else orjson.dumps(key).decode()
    size = len(text.encode())
    if not 1 <= size <= KEY_BYTES:
        raise PayloadInvalid(f"{kind.biz_type}: {kind.key!r} has {size} bytes, expected 1 to {KEY_BYTES} for a key")
    return text


def _explain(error: msgspec.ValidationError) -> tuple[str, str]:
    """Field and expectation of a msgspec error: `Expected `int`, got `str` - at `$.user_id``."""
    text, _, path = str(error).partition(" - at `$")
    field = path.rstrip("`").lstrip(".")
    expected = text.replace("`", "")
    if expected.startswith("Object missing required field"):
        missing = expected.rsplit(" ", 1)[1]
        return (f"{field}.{missing}" if field else missing), "expected a value, got none"
    return field or "payload", expected[0].lower() + expected[1:]


def _at(plain: Any, field: str) -> Any:
    for part in field.split("."):
        plain = plain.get(part) if isinstance(plain, dict) else plain
    return plain


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def _unparsable(raw: bytes | str, error: orjson.JSONDecodeError) -> str:
    if isinstance(raw, bytes):
        try:
            raw.decode()
        except UnicodeDecodeError as broken:
            return f"the value is not UTF-8 at byte {broken.start}"
    # error.msg describes the grammar; str(error) would add nothing but position, error.doc is the text itself.
    return f"the value is not JSON: {error.msg} at character {error.pos}"


def _unencodable(event: Any) -> str | None:
    """Which field orjson refuses, for the message to the caller."""
    for field in dataclasses.fields(event):
        value = getattr(event, field.name)
        try:
            orjson.dumps(value)
        except orjson.JSONEncodeError as error:
            return f"{field.name!r} is {_shown(value)}: {error}"
    return None


def _nul_field(plain: Any, path: str = "") -> str | None:
    """Where a text with NUL is, in keys too; None when the escape was itself escaped text."""
    if isinstance(plain, str):
        return path if "\x00" in plain else None
    if isinstance(plain, dict):
        for key, value in plain.items():
            inner = f"{path}.{key}" if path else key
            if found := (inner.replace("\x00", "\\u0000") if "\x00" in key else _nul_field(value, inner)):
                return found
    if isinstance(plain, list):
        for value in plain:
            if found := _nul_field(value, f"{path}[...]"):
                return found
    return None
