"""The trail of operators' acts, `outbox_actions`: who did what, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from sqlalchemy import Connection

from streams.database import query


def write_act(
    connection: Connection,
    act: str,
    who: str,
    why: str | None,
    what: Mapping[str, Any],
    *,
    outbox_id: int | None = None,
) -> None:
    """Write an operator's act down, in the transaction that does it.

    `outbox_id` is the message that it is about, where it is one.
    """
    parameters = {
        "who": who,
        "act": act,
        "outbox_id": outbox_id,
        "what": orjson.dumps(what).decode(),
        "why": why,
    }
    connection.exec_driver_sql(query("note_action"), parameters)
