"""`streams biz-types`: which biz_types are registered, and retiring those that are no more."""

from __future__ import annotations

import click
from sqlalchemy import Connection

from streams.cli.choose import Commands, say, say_json
from streams.cli.console import database, show, signed
from streams.database import query
from streams.errors import UsageError
from streams.operate.trail import write_act
from streams.worker.run.unreadable import UNREGISTERED_SECONDS

DAY = 86_400.0
COLUMNS = ("biz_type", "topic", "partitions", "max_bytes", "waiting", "retired_at")


@click.group("biz-types", cls=Commands)
def biz_types() -> None:
    """Look at the registered biz_types, and retire one."""


@biz_types.command("list")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_(as_json: bool) -> None:
    """List the registered biz_types.

    `waiting` counts messages that no running worker has known so far.
    """
    with database() as (_, connection):
        rows = connection.exec_driver_sql(query("biz_types")).all()
    if as_json:
        say_json([dict(row._mapping) for row in rows])
    elif rows:
        show(rows, COLUMNS)
    else:
        say("no biz_type is registered: run `streams migrate`")


@biz_types.command()
@click.argument("name")
@click.option("--undo", is_flag=True, help="Take it back.")
@signed
def retire(name: str, undo: bool, who: str, why: str | None) -> None:
    """Let nobody enqueue the biz_type NAME with outbox_enqueue any more.

    What still arrives is dead at once, unless a worker knows it, and so is what waits for one that
    does.
    """
    with database() as (settings, connection):
        seconds = settings.worker.unknown_days * DAY
        patience = {"seconds": seconds, "foreign": min(seconds, UNREGISTERED_SECONDS)}
        waiting = _retire(connection, name, undo, patience, who, why)
    wait = "wait on" if undo else "waited"
    say(
        f"{name} is {'no longer ' if undo else ''}retired"
        + (f", {waiting} messages {wait}" if waiting else "")
    )


def _retire(
    connection: Connection,
    name: str,
    undo: bool,
    patience: dict[str, float],
    who: str,
    why: str | None,
) -> int:
    with connection.begin():
        if (
            connection.exec_driver_sql(
                query("retire_biz_type"), {"biz_type": name, "retire": not undo}
            ).first()
            is None
        ):
            known = (
                ", ".join(row.biz_type for row in connection.exec_driver_sql(query("biz_types")))
                or "(none)"
            )
            raise UsageError(f"biz_type {name!r} is not registered: expected one of {known}")
        about = {"biz_type": name}
        waiting = (
            connection.exec_driver_sql(query("wait_on"), about | patience)
            if undo
            else connection.exec_driver_sql(query("give_up_waiting"), about)
        ).scalar_one()
        act = "unretire" if undo else "retire"
        write_act(connection, act, who, why, {"biz_type": name, "waiting": waiting})
    return int(waiting)
