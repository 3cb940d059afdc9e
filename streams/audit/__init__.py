"""Proof that nothing was lost, doubled or reordered.

Outbox, states, topics and effects are compared.
"""

from __future__ import annotations

from collections.abc import Callable

import orjson
from sqlalchemy import Connection

from streams.audit.examine import Audit
from streams.audit.repair import repair
from streams.audit.report import KINDS, Report
from streams.audit.session import Session
from streams.audit.topics import Topics
from streams.database.retention import periods
from streams.registry import Registry
from streams.settings import Settings

__all__ = ["KINDS", "Report", "audit"]

GRACE = 40.0
PATIENCE = 5.0
AGE = 300.0


def audit(
    connection: Connection,
    settings: Settings,
    registry: Registry,
    *,
    full: bool = False,
    repair_as: str | None = None,
    grace: float = GRACE,
    patience: float = PATIENCE,
    age: float = AGE,
    advance: Callable[[int, int], None] = lambda done, total: None,
    waits: Callable[[str], None] = lambda line: None,
) -> Report:
    """Audit what is new since the last time, or everything.

    With `repair_as` (who) what was lost is sent again.

    `grace` is how long, in seconds, a message may be overdue, `patience` how long workers get to
    catch up, `age` how long a message may wait to be published or read. The report is written down
    in `outbox_audits`. While another audit is under way this one waits for its end; `waits` is told
    in one line who that is. ServiceUnreachable when Kafka does not answer.
    """
    session = Session(connection)
    with session.alone(waits), Topics(settings, registry.consumed) as topics:
        examination = Audit(
            session,
            topics,
            registry,
            full=full,
            grace=grace,
            patience=patience,
            age=age,
            foreign_days=periods(settings, registry.topics, registry.envelopes).foreign,
        )
        report = examination.run(advance)
        if repair_as is not None:
            repair(session, examination, repair_as)
        plain = orjson.dumps(report.plain()).decode()
        session.rows(
            "audit_report",
            seconds=report.seconds,
            complete=report.complete,
            messages=report.messages,
            wrong=report.count,
            report=plain,
        )
    return report
