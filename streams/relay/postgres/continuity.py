"""When a slot or a database cannot be gone on from: judged by what was saved.

This is policy only.

A relay saves a log position before it confirms it to the slot. So the slot is never past what was
saved, unless it is another slot, made since: then rows between the two were read by nobody.
"""

from __future__ import annotations

from streams.errors import NotMigrated, UsageError
from streams.relay.postgres.lsn import lsn_text
from streams.relay.postgres.snapshot import RelaySnapshot

ADOPT = "if it is to go on from here, run `streams relay adopt`, see docs/relays.md"


def why_unreadable(snapshot: RelaySnapshot) -> str | None:
    """Why there is no slot that could be read; None when there is one."""
    if snapshot.slot is None:
        return f"replication slot {snapshot.relay} does not exist"
    if snapshot.slot.wal_status == "lost":
        return f"replication slot {snapshot.relay} has lost its WAL"
    if snapshot.slot.confirmed is None:
        return f"replication slot {snapshot.relay} is being made"
    return None


def why_incomplete(snapshot: RelaySnapshot) -> str | None:
    """Why the log, read through the publication, may lack rows; None when it does not."""
    if snapshot.read_with is not None and snapshot.publication != snapshot.read_with:
        return (
            "the publication was changed or made anew: rows committed meanwhile may not be in what"
            " is read"
        )
    return None


def why_not_resumable(snapshot: RelaySnapshot) -> str | None:
    """Why rows would be missed by reading the slot on; None when none would."""
    reason = why_unreadable(snapshot) or why_incomplete(snapshot)
    if reason is not None or snapshot.slot is None or snapshot.slot.confirmed is None:
        return reason
    if snapshot.lsn is None or snapshot.slot.confirmed > snapshot.lsn:
        begins, known = (
            lsn_text(snapshot.slot.confirmed),
            "an unknown position" if snapshot.lsn is None else lsn_text(snapshot.lsn),
        )
        return (
            f"replication slot {snapshot.relay} begins at {begins}, what is published ends at"
            f" {known}"
        )
    return None


def refuse_stranger(snapshot: RelaySnapshot) -> None:
    """UsageError when this is not the database that the saved position speaks of."""
    if snapshot.known_as is not None and snapshot.known_as != snapshot.identity:
        raise UsageError(
            f"this is not the database that relay {snapshot.relay} published from"
            f" ({_difference(snapshot)}): it was restored or"
            f" copied, and floor {snapshot.floor} is not trusted; {ADOPT}"
        )
    if snapshot.newest < snapshot.floor:
        raise UsageError(
            f"the sequence outbox_id_seq went back to {snapshot.newest}, below floor"
            f" {snapshot.floor} of relay {snapshot.relay}: ids would be used twice; {ADOPT}"
        )


def refuse_foreign_slot(snapshot: RelaySnapshot) -> None:
    """UsageError when the slot's name is somebody else's; NotMigrated when it was never made."""
    slot = snapshot.slot
    if slot is not None and not slot.ours:
        raise UsageError(
            f"replication slot {snapshot.relay} belongs to another system (plugin {slot.plugin},"
            f" {'this' if slot.here else 'another'} database): set relay.name to a name of its own"
        )
    if slot is None and not snapshot.led:
        raise NotMigrated(
            f"replication slot {snapshot.relay} does not exist: run `streams migrate`"
        )


def _difference(snapshot: RelaySnapshot) -> str:
    known, here = (snapshot.known_as or "").split("/"), snapshot.identity.split("/")
    parts = zip(("system identifier", "database", "table outbox"), known, here, strict=True)
    return ", ".join(f"{name} {old} before, {new} now" for name, old, new in parts if old != new)
