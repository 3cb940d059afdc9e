"""When a slot or a database cannot be gone on from: judged by what was saved.  Policy only.

A relay saves a log position before it confirms it to the slot.  So the slot is never past what was saved, unless it is
another slot, made since: then rows between the two were read by nobody.
"""

from __future__ import annotations

from streams.errors import NotMigrated, UsageError
from streams.relay.postgres.lsn import lsn_text
from streams.relay.postgres.snapshot import RelaySnapshot

ADOPT = "if it is to go on from here, run `streams relay adopt`, see docs/relays.md"


def gone(look: RelaySnapshot) -> str | None:
    """Why there is no slot that could be read; None when there is one."""
    if look.slot is None:
        return f"replication slot {look.relay} does not exist"
    if look.slot.wal_status == "lost":
        return f"replication slot {look.relay} has lost its WAL"
    if look.slot.confirmed is None:
        return f"replication slot {look.relay} is being made"
    return None


def changed(look: RelaySnapshot) -> str | None:
    """Why the log, read through the publication, may lack rows; None when it does not."""
    if look.read_with is not None and look.publication != look.read_with:
        return "the publication was changed or made anew: rows committed meanwhile may not be in what is read"
    return None


def hole(look: RelaySnapshot) -> str | None:
    """Why rows would be missed by reading the slot on; None when none would."""
    found = gone(look) or changed(look)
    if found is not None or look.slot is None or look.slot.confirmed is None:
        return found
    if look.lsn is None or look.slot.confirmed > look.lsn:
        begins, known = lsn_text(look.slot.confirmed), "an unknown position" if look.lsn is None else lsn_text(look.lsn)
        return f"replication slot {look.relay} begins at {begins}, what is published ends at {known}"
    return None


def refuse_stranger(look: RelaySnapshot) -> None:
    """UsageError when this is not the database that the saved position speaks of."""
    if look.known_as is not None and look.known_as != look.identity:
        raise UsageError(
            f"this is not the database that relay {look.relay} published from ({_difference(look)}): it was restored or"
            f" copied, and floor {look.floor} is not trusted; {ADOPT}"
        )
    if look.newest < look.floor:
        raise UsageError(
            f"the sequence outbox_id_seq went back to {look.newest}, below floor {look.floor} of relay {look.relay}:"
            f" ids would be used twice; {ADOPT}"
        )


def refuse_foreign_slot(look: RelaySnapshot) -> None:
    """UsageError when the slot's name is somebody else's; NotMigrated when it was never made."""
    slot = look.slot
    if slot is not None and not slot.ours:
        raise UsageError(
            f"replication slot {look.relay} belongs to another system (plugin {slot.plugin},"
            f" {'this' if slot.here else 'another'} database): set relay.name to a name of its own"
        )
    if slot is None and not look.led:
        raise NotMigrated(f"replication slot {look.relay} does not exist: run `streams migrate`")


def _difference(look: RelaySnapshot) -> str:
    known, here = (look.known_as or "").split("/"), look.identity.split("/")
    parts = zip(("system identifier", "database", "table outbox"), known, here, strict=True)
    return ", ".join(f"{name} {old} before, {new} now" for name, old, new in parts if old != new)
