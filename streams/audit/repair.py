"""What an audit can mend: lost messages, and lost replays, are sent again.

The rest needs a person.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson
import psycopg

from streams.audit.examine import Audit
from streams.audit.session import Session
from streams.database.refusals import PASSING, refusal, sqlstate

BATCH = 1000


def repair(session: Session, audit: Audit, who: str) -> None:
    """Count in the report what was sent again; each transaction leaves a row in `outbox_actions`.

    What may have its effect in a table that cannot be read is not: it would have it twice. What
    PostgreSQL refuses is told in a note, and the rest goes on.
    """
    report = audit.report
    if audit.doubtful:
        report.notes.append(
            f"{len(audit.doubtful)} lost messages are not sent again: whether their effect is there"
            " could not be read"
        )
    steps = [(_messages, ids) for ids in _batches(sorted(audit.lost.keys() - audit.doubtful))] + [
        (_replays, ids) for ids in _batches(audit.lost_replays)
    ]
    for send, ids in steps:
        try:
            with session.transaction():
                sent = send(session, ids, report.floor)
                _note(session, who, sent)
        except psycopg.Error as error:
            if session.lost or sqlstate(error).startswith(PASSING):
                raise
            report.notes.append(f"{ids[0]} to {ids[-1]} are not sent again: {refusal(error)}")
        else:
            report.repaired += len(sent)


def _messages(session: Session, ids: list[int], floor: int) -> list[int]:
    return [row[0] for row in session.rows("audit_resend", ids=ids, floor=floor)]


def _replays(session: Session, ids: list[int], floor: int) -> list[int]:
    locked = [row[0] for row in session.rows("audit_lock_replays", ids=ids, floor=floor)]
    return [row[0] for row in session.rows("audit_resend_replays", ids=locked)]


def _note(session: Session, who: str, ids: list[int]) -> None:
    if ids:
        what = orjson.dumps({"count": len(ids), "ids": ids}).decode()
        only_id = ids[0] if len(ids) == 1 else None
        session.rows(
            "note_action",
            who=who,
            act="repair",
            outbox_id=only_id,
            what=what,
            why="the audit found them lost",
        )


def _batches(ids: Sequence[int]) -> list[list[int]]:
    return [list(ids[start : start + BATCH]) for start in range(0, len(ids), BATCH)]
