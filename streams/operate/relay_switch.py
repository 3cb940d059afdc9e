"""What operators want a relay to do: whoever leads in mode auto follows within a second."""

from __future__ import annotations

from sqlalchemy import Connection

from streams.database import query
from streams.errors import UsageError
from streams.operate.trail import write_act
from streams.settings import Settings


def switch(
    connection: Connection, settings: Settings, mode: str, *, who: str, why: str | None
) -> None:
    """Ask for this mode from now on, and write it down.

    UsageError when it cannot be had, or nobody would follow.
    """
    relay = settings.relay.name
    if mode == "debezium" and not (settings.connect.url and settings.connect.register):
        raise UsageError(
            "to switch to debezium set connect.url, and connect.register to true,"
            " for every relay of this name"
        )
    with connection.begin():
        row = connection.exec_driver_sql(
            query("relay_switch"), {"relay": relay, "wish": mode}
        ).first()
        if row is None or row[0] is None:
            raise UsageError(
                f"relay {relay} never ran here: start it, `streams relay --mode {mode}`"
            )
        asked, leads = row
        if leads and asked != "auto":
            raise UsageError(
                f"the leader of relay {relay} was started with mode {asked} and follows nobody:"
                " start relays with mode auto (relay.mode), then switch"
            )
        write_act(connection, "relay switch", who, why, {"relay": relay, "to": mode})
