"""What operators did, which audits they asked for, and what audits found: the newest first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from streams.database import locks, query
from streams.operate.replay import Operator
from streams.operate.trail import write_act


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


@dataclass(frozen=True, slots=True)
class AskedAudit:
    """The audit that somebody asked for last, from a page.

    `state` is running, done, failed (`error` says why), or lost: it was asked for half an hour ago,
    no audit is under way, and whoever did it has probably died.
    """

    at: datetime
    who: str
    why: str | None
    full: bool
    state: str
    error: str | None


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


def asked_audit(connection: Connection, *, alone: bool = False) -> AskedAudit | None:
    """The audit that was asked for last, of the last day; None: there was none.

    `alone`: nobody else asks for one until this transaction has ended.
    """
    if alone:
        connection.exec_driver_sql(query("lock_in_turn"), {"lock": locks.ASKING_FOR_AUDIT})
    row = connection.exec_driver_sql(query("asked_audit")).first()
    if row is None:
        return None
    asked = AskedAudit(*row)
    # Behind a long one it waits for its turn.
    holder = {"lock": locks.AUDIT}
    if asked.state == "lost" and connection.exec_driver_sql(query("lock_holder"), holder).first():
        return replace(asked, state="running")
    return asked


def ask_audit(connection: Connection, operator: Operator, *, full: bool) -> AskedAudit:
    """Write down that somebody asked for one now."""
    write_act(connection, "audit", operator.who, operator.why, {"full": full})
    asked = asked_audit(connection)
    assert asked is not None
    return asked


def note_failed_audit(connection: Connection, operator: Operator, reason: str) -> None:
    """Write down that it could not be done."""
    write_act(connection, "audit failed", operator.who, operator.why, {"error": reason})
