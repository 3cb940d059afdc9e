"""Types of parameters that pages share, with their limits."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec

from streams.message_id import MAX_ID

Before = Annotated[int, msgspec.Meta(ge=1, le=MAX_ID, description="where the page before ended")]
Limit = Annotated[int, msgspec.Meta(ge=1, le=200, description="how many")]
Fingerprint = Annotated[
    str, msgspec.Meta(pattern="^[0-9a-f]{8}$", description="8 hex digits, the name of a cause")
]
Since = Annotated[
    datetime, msgspec.Meta(tz=True, description="a time like 2026-01-31T12:00:00Z, with its offset")
]
Topic = Annotated[str, msgspec.Meta(min_length=1, max_length=249)]
Name = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^([A-Za-z0-9._-]{1,249}:)?[0-9]{1,19}$",
        description="an outbox id, or source:id of another system's message",
    ),
]
