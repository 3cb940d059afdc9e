"""Another system's envelope, `{"outbox_id", "biz_type", "payload"}`: what it holds and says."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import orjson

from streams import codec
from streams.codec import Unreadable
from streams.events import EventType
from streams.message_id import outbox_number

DELETED = "Kafka deleted it before it was read"
"""In `outbox_rejects`: what its producer has to send again, for nobody here has it."""


_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


class NoEnvelope(ValueError):
    """A record that cannot be tied to a message; says what is wrong with it, without its text."""


class _Fields(msgspec.Struct):
    """Found, not read: the payload stays as its producer wrote it."""

    outbox_id: msgspec.Raw = msgspec.Raw()
    biz_type: Any = None
    payload: msgspec.Raw = msgspec.Raw()


_decoder = msgspec.json.Decoder(_Fields)


def opened(value: bytes | None) -> tuple[int, str, str]:
    """(outbox id, biz_type, payload as JSON text) of a record's value.

    NoEnvelope when one of them is not there.
    """
    if value is None:
        raise NoEnvelope("the value is null, expected an envelope")
    try:
        fields = _decoder.decode(value.decode())
    except msgspec.ValidationError as error:
        raise NoEnvelope(
            f"the value is no envelope: {str(error).lower().replace('`', '')}"
        ) from None
    except RecursionError:
        raise NoEnvelope("the value is nested too deep, expected at most 254 levels") from None
    except (UnicodeDecodeError, msgspec.DecodeError) as error:
        raise NoEnvelope(codec.unparsable(value) or f"the value is not JSON: {error}") from None
    outbox_id = _id(bytes(fields.outbox_id))
    if not isinstance(fields.biz_type, str):
        kind = "missing" if fields.biz_type is None else f"of type {type(fields.biz_type).__name__}"
        raise NoEnvelope(
            f"the envelope's 'biz_type' is {kind}, expected text (outbox_id {outbox_id})"
        )
    payload = bytes(fields.payload).decode()
    if not payload:
        raise NoEnvelope(f"the envelope's 'payload' is missing (outbox_id {outbox_id})")
    return outbox_id, fields.biz_type, payload


def decoded(payload: str | None, kind: EventType) -> tuple[str, Any]:
    """(conversation, payload object) of an envelope's payload.

    Unreadable says what is wrong with it.
    """
    inner = _inner(payload)
    try:
        event = codec.decode(inner, kind.payload)
    except Unreadable as error:
        if error.code == "json" and _is_base64(inner):
            raise Unreadable(
                f"{error}; it is base64, as Go writes a []byte: expected JSON", code="json"
            ) from None
        raise
    key = codec.key_text(getattr(event, kind.key))
    if key is None:
        raise Unreadable(
            f"{kind.key!r}: expected 1 to {codec.KEY_BYTES} bytes, it is the key", code="key"
        )
    return key, event


def conversation(payload: str | None, kind: EventType) -> str | None:
    """The conversation that a payload names, however wrong the rest of it is.

    It is that of messages whose payload can be read: two spellings of one UUID are one key.
    """
    try:
        inner = _inner(payload) or "null"
        plain = orjson.loads(inner)
    except (Unreadable, orjson.JSONDecodeError):
        return None
    named = plain.get(kind.key) if isinstance(plain, dict) else None
    if not isinstance(named, str | int | float):
        return None
    try:
        raw = bytes(_FIELDS.decode(inner)[kind.key])
    except (msgspec.DecodeError, RecursionError):  # it is stricter, and reads less deep
        raw = orjson.dumps(named)
    return codec.key_text(codec.key_read(raw, kind))


def _id(raw: bytes) -> int:
    text = raw[1:-1] if raw[:1] == raw[-1:] == b'"' else raw
    outbox_id = outbox_number(text)
    if outbox_id is None:
        shown = (
            "missing"
            if not raw
            else raw.decode()[:40]
            if raw[:1] in b"-0123456789"
            else "no number"
        )
        raise NoEnvelope(
            f"the envelope's 'outbox_id' is {shown}, expected a whole number from 1 to {2**63 - 1}"
        )
    return outbox_id


def _is_base64(text: str | None) -> bool:
    """Whether this is a JSON object in base64."""
    try:
        return base64.b64decode(text or "", validate=True).lstrip()[:1] == b"{"
    except ValueError:  # binascii.Error is one
        return False


def _inner(payload: str | None) -> str | None:
    """The payload's own JSON.

    Its producer may have put it into the envelope as an object, or as text.
    """
    if payload is None or not payload.startswith('"'):
        return payload
    try:
        text: str = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise Unreadable(f"the payload is not JSON: {error.msg}", code="json") from None
    return text
