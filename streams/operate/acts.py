"""What operators did, and what audits found: the newest first, a page at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from streams.database import query


@dataclass(frozen=True, slots=True)
class Act:
    """One act of an operator: `count` messages, of which `outbox_id` is named when it was one.

    `operation` is the bulk act that it is part of.
    """

    id: int
    at: datetime
    who: str
    act: str
    outbox_id: int | None
    what: Mapping[str, Any]
    count: int
    why: str | None
    operation: int | None = None


@dataclass(frozen=True, slots=True)
class Audit:
    """One audit; `report` is what `streams audit --json` printed."""

    id: int
    at: datetime
    seconds: float
    complete: bool
    messages: int
    wrong: int
    report: Mapping[str, Any]


def acts(
    connection: Connection,
    *,
    before: int | None = None,
    who: str | None = None,
    act: str | None = None,
    limit: int = 50,
) -> list[Act]:
    """Acts, the newest first; `before` is the id of the last one of the page before."""
    parameters = {"before": before, "who": who, "act": act, "limit": limit}
    return [Act(*row) for row in connection.exec_driver_sql(query("acts_page"), parameters)]


def audits(connection: Connection, *, before: int | None = None, limit: int = 50) -> list[Audit]:
    """Audits, the newest first; `before` is the id of the last one of the page before."""
    parameters = {"before": before, "limit": limit}
    return [Audit(*row) for row in connection.exec_driver_sql(query("audits_page"), parameters)]
