"""What an audit can mend: lost messages, and lost replays, are sent again.

The rest needs a person.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from streams.audit.examine import Audit
from streams.audit.session import Session

BATCH = 1000


def repair(session: Session, audit: Audit, who: str) -> int:
    """How many were sent again; each transaction leaves its row in `outbox_actions`.

    What may have its effect in a table that cannot be read is not: it would have it twice.
    """
    floor = audit.report.floor
    if audit.doubtful:
        audit.report.notes.append(
            f"{len(audit.doubtful)} lost messages are not sent again: whether their effect is there"
            " could not be read"
        )
    done = 0
    for ids in _batches(sorted(audit.lost.keys() - audit.doubtful)):
        with session.transaction():
            sent = [row[0] for row in session.rows("audit_resend", ids=ids, floor=floor)]
            _note(session, who, sent)
        done += len(sent)
    for ids in _batches(audit.lost_replays):
        with session.transaction():
            locked = [row[0] for row in session.rows("audit_lock_replays", ids=ids, floor=floor)]
            sent = [row[0] for row in session.rows("audit_resend_replays", ids=locked)]
            _note(session, who, sent)
        done += len(sent)
    return done


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
