"""The advisory locks that keep two processes of one outbox apart, by name.

The queries of `db/queries/locks.sql` take and give them; a name means another lock in each outbox
of a database. Those that are looked for in `pg_locks`, or have rules of their own (attendance,
adoption, emptying), are named in the queries that do so.
"""

from __future__ import annotations

RETENTION = "outbox-streams retention"
AUDIT = "outbox-streams auditing"
NEXT_AUDIT = "outbox-streams audit waits"
ASKING_FOR_AUDIT = "outbox-streams audit"


def relay(name: str) -> str:
    """Who leads the relays of this name alone has it; those that share the work share it."""
    return f"outbox-streams relay {name}"


def shard(name: str, number: int) -> str:
    """Who leads one shard of the relays of this name."""
    return f"outbox-streams relay {name} shard {number}"


def joining(name: str) -> str:
    """One relay at a time joins those that share the work."""
    return f"outbox-streams relays join {name}"


def operation(number: int) -> str:
    """Who works an operation."""
    return f"outbox-streams operation {number}"
