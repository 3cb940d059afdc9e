"""What a leader plans to do: what it is asked for, and what the database allows now."""

from __future__ import annotations

from dataclasses import dataclass

from streams.errors import UsageError
from streams.relay.debezium.supervisor import ConnectorSupervisor
from streams.relay.postgres.checks import MayNotReplicate, check_log, check_replication
from streams.relay.postgres.continuity import (
    refuse_foreign_slot,
    why_incomplete,
    why_not_resumable,
    why_unreadable,
)
from streams.relay.postgres.snapshot import RelaySnapshot
from streams.settings import Settings
from streams.tasks import apart


@dataclass(frozen=True, slots=True)
class Plan:
    """How rows are published now.

    mode             what publishes
    recovering_to    the mode that goes on as soon as there is a slot that it can read without a
                     gap; None when `mode` is the goal
    reason           why it is not simply what was asked for
    """

    mode: str
    recovering_to: str | None = None
    reason: str | None = None

    @property
    def goal(self) -> str:
        """The mode that is meant to publish."""
        return self.recovering_to or self.mode

    @property
    def doing(self) -> str:
        """In one word."""
        if self.recovering_to is not None:
            return "healing"
        return {"cdc": "streaming", "poll": "polling", "debezium": "connector"}[self.mode]


async def desired_plan(settings: Settings, asked: str, snapshot: RelaySnapshot) -> Plan:
    """What to do if the slot is fine; mode auto follows an operator's wish.

    Without one it is cdc where that can be.

    UsageError or ServiceUnreachable when another mode cannot be. One that led before and has lost
    its right goes on by polling, until it has it back.
    """
    mode, refused = (asked, None) if asked != "auto" else _wish(settings, snapshot)
    if mode == "poll":
        return Plan("poll")
    try:
        await apart(check_log, settings)
        refuse_foreign_slot(snapshot)
        if mode == "debezium":
            await ConnectorSupervisor(settings).reach()
        else:
            await check_replication(settings)
    except UsageError as error:
        if asked != "auto" and not (snapshot.led and isinstance(error, MayNotReplicate)):
            raise
        # A slot that nobody reads holds WAL back: what made it is not given up.
        meant = asked != "auto" or snapshot.wish or snapshot.slot or snapshot.lsn
        return Plan("poll", mode if meant else None, str(error))
    return Plan(mode, reason=refused)


def possible_plan(settings: Settings, desired: Plan, snapshot: RelaySnapshot) -> Plan:
    """What to do as the slot is.

    UsageError when it was lost under a connector that this relay cannot stop.
    """
    # Debezium confirms the slot itself, and tells nobody before.
    fault = (
        why_not_resumable(snapshot)
        if desired.mode == "cdc"
        else why_unreadable(snapshot) or why_incomplete(snapshot)
    )
    if desired.mode == "poll" or fault is None:
        return desired
    if desired.mode == "debezium" and not settings.connect.register:
        raise UsageError(
            f"{fault}: rows after outbox_id {snapshot.floor} may be missing; stop its connector and"
            " run `streams relay --mode cdc`, which sends them and makes the slot anew"
        )
    return Plan("poll", desired.mode, fault)


def _wish(settings: Settings, snapshot: RelaySnapshot) -> tuple[str, str | None]:
    if snapshot.wish == "debezium" and not (settings.connect.url and settings.connect.register):
        return (
            "cdc",
            "debezium was asked for, but connect.url and connect.register are not set here",
        )
    return snapshot.wish or "cdc", None
