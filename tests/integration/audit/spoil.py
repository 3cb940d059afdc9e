"""What tests do to a copy of the system, and how they read the answer."""

from __future__ import annotations

from typing import Any

from streams import operate
from streams.database import migrate
from tests.conftest import World

Report = dict[str, Any]
GRACE = "3600"

HIDE = "UPDATE relay_position SET floor = (SELECT last_value FROM outbox_id_seq)"
SWAP_APPLIED = (
    "UPDATE outbox_state AS h SET applied = o.applied FROM outbox_state AS o"
    " WHERE (h.outbox_id, o.outbox_id) IN ((%(id)s, %(next)s), (%(next)s, %(id)s))"
)


def chat(copy: World, key: str = "c3") -> list[int]:
    """The persisted messages of one conversation that nothing special happened to, in order."""
    rows = copy.query(
        "SELECT id FROM outbox JOIN outbox_state ON outbox_id = id WHERE outbox.key = %s"
        " AND status = 'consumed' AND replays = 0 AND NOT EXISTS (SELECT FROM outbox AS r"
        " WHERE r.resend_of = outbox.id) ORDER BY id",
        key,
    )
    return [row[0] for row in rows]


def named(report: Report, kind: str) -> set[int]:
    """Every message that the examples of this kind name."""
    return {
        value
        for example in report["wrong"][kind]["examples"]
        for name, value in example.items()
        if name in ("outbox_id", "before", "other")
    }


def lose_a_replay(copy: World) -> int:
    """A replay whose record never came, while the workers have passed everything."""
    [(one,)] = copy.query(
        "SELECT outbox_id FROM outbox_state WHERE status = 'dead' ORDER BY 1 LIMIT 1"
    )
    with migrate.connection(copy.settings) as connection:
        list(operate.replay(connection, [one], operate.Operator("ann"), operate.Choice()))
    copy.query(HIDE)
    return int(one)
