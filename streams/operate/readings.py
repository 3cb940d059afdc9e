"""What a text in the search box may mean: a message, a cause, a conversation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection

from streams.database import query
from streams.message_id import MessageId, parts_of, read_name

_FINGERPRINT = re.compile(r"[0-9a-f]{8}")
_CODE = re.compile(r"[A-Za-z0-9_.]{1,60}")


@dataclass(frozen=True, slots=True)
class Reading:
    """One thing that may be meant.

    `exists` is None where only a look at the whole outbox would tell.

    `name` is the message's id, the cause's fingerprint or error code, or the conversation's key;
    `topic` goes with a key, `source` with that of another system.
    """

    kind: Literal["message", "cause", "code", "conversation"]
    name: MessageId
    exists: bool | None
    topic: str | None = None
    source: str = ""


def readings(connection: Connection, text: str) -> list[Reading]:
    """Everything that this may mean, what exists first.

    It is empty for nothing, and for what no key can be.
    """
    text = text.strip()
    if not text or "\x00" in text or len(text.encode()) > 1024:
        return []
    possible: list[Reading] = []
    try:
        name = read_name(text)
    except ValueError:
        pass
    else:
        source, outbox_id = parts_of(name)
        parameters = {"source": source, "outbox_id": outbox_id}
        exists = connection.exec_driver_sql(query("reading_message"), parameters).scalar_one()
        possible.append(Reading("message", name, exists))
    if _FINGERPRINT.fullmatch(text) or _CODE.fullmatch(text):
        cause, code = connection.exec_driver_sql(query("reading_cause"), {"text": text}).one()
        if cause:
            possible.append(Reading("cause", text, True))
        if code:
            possible.append(Reading("code", text, True))
    rows = connection.exec_driver_sql(query("reading_conversation"), {"text": text})
    possible += [
        Reading("conversation", text, there or None, topic, source) for topic, source, there in rows
    ]
    return sorted(possible, key=lambda reading: reading.exists is not True)
