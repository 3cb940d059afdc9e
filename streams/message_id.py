"""How a message is named: its outbox id, or `source:id` where another system gave the id."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

MessageId = int | str

MAX_ID = 2**63 - 1
_FOREIGN = re.compile(r"([A-Za-z0-9._-]{1,249}):([0-9]{1,19})")


def name_of(source: str, outbox_id: int) -> MessageId:
    """The name of a message; `source` is '' for our own outbox."""
    return f"{source}:{outbox_id}" if source else outbox_id


def parts_of(name: MessageId) -> tuple[str, int]:
    """(source, outbox id) of a message."""
    if isinstance(name, int):
        return "", name
    source, _, outbox_id = name.rpartition(":")
    return source, int(outbox_id)


def ours(names: Iterable[MessageId]) -> list[int]:
    """The outbox ids among them."""
    return [name for name in names if isinstance(name, int)]


def foreign(names: Iterable[MessageId]) -> dict[str, list[Any]]:
    """Those of other systems, as the parameters `sources` and `ids` of a named query."""
    parts = [parts_of(name) for name in names if isinstance(name, str)]
    return {
        "sources": [source for source, _ in parts],
        "ids": [outbox_id for _, outbox_id in parts],
    }


def read_name(text: str) -> MessageId:
    """The name a person wrote; ValueError when it is none."""
    match = _FOREIGN.fullmatch(text)
    name: MessageId = name_of(match[1], int(match[2])) if match else int(text)
    if not 1 <= parts_of(name)[1] <= MAX_ID:
        raise ValueError(f"{text!r} is no id")
    return name


def outbox_number(raw: bytes | None) -> int | None:
    """A positive bigint in plain ASCII digits, else None."""
    if raw is None or len(raw) > 19 or not raw.isdigit():
        return None
    number = int(raw)
    return number if 0 < number <= MAX_ID else None
