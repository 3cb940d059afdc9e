"""`streams relay switch` and `adopt`: what operators do to a relay, noted in `outbox_actions`."""

from __future__ import annotations

import sys
import time

import click
from sqlalchemy import Connection

from streams.cli.choose import say
from streams.cli.console import database, signed
from streams.errors import StreamsError, UsageError
from streams.operate.relay_status import RelayStatus, standing

DOING = {"cdc": "streaming", "poll": "polling", "debezium": "connector"}
LOOK_SECONDS = 0.2


class SwitchTimeout(StreamsError):
    """What was asked for has not come about in time."""


@click.command()
@click.option(
    "--to",
    "mode",
    type=click.Choice(tuple(DOING)),
    required=True,
    help="Which relay publishes from now on.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=120.0,
    show_default=True,
    help="Seconds to wait for it.",
)
@signed
def switch(mode: str, timeout: float, who: str, why: str | None) -> None:
    """Change how rows are published, without a gap, and wait until the new way leads.

    The relays follow that were started with mode auto; they remember it. Exit code 1 when it takes
    longer.
    """
    from streams.operate.relay_switch import switch as ask

    with database() as (settings, connection):
        ask(connection, settings, mode, who=who, why=why)
        _wait(connection, settings.relay.name, mode, timeout)


def _wait(connection: Connection, relay: str, mode: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    last = ""
    while True:
        with connection.begin():
            [standing_now] = standing(connection, relay)
        if now := _now(standing_now):
            last = _say(now, last)
        if standing_now.leader and (standing_now.mode, standing_now.doing) == (mode, DOING[mode]):
            say(f"relay {relay} publishes in mode {mode}")
            return
        if time.monotonic() > deadline:
            raise SwitchTimeout(
                f"relay {relay} is not in mode {mode} after {timeout:g} s, and goes on trying;"
                f" {now}"
            )
        time.sleep(LOOK_SECONDS)


def _now(relay_status: RelayStatus) -> str:
    if relay_status.leader is None:
        return "nobody leads: start `streams relay`"
    return (
        f"{relay_status.mode}:"
        f" {relay_status.doing}{f', {relay_status.reason}' if relay_status.reason else ''}"
    )


def _say(now: str, last: str) -> str:
    if now != last:
        say(now, err=True)
    return now


@click.command()
@click.option(
    "--skip",
    type=click.IntRange(min=0),
    default=1_000_000,
    show_default=True,
    help="Ids left out, which the other database may have drawn since.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Also when the relay knows it: a failover lost what was committed last.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@signed
def adopt(skip: int, force: bool, yes: bool, who: str, why: str | None) -> None:
    """Publish from this database, though it is not the one that the relay knows.

    It was restored, copied, or upgraded.
    """
    from streams.operate.relay_adopt import adopt as take
    from streams.operate.relay_adopt import plan

    with database() as (settings, connection):
        adoption = plan(connection, settings, skip=skip, force=force)
        if adoption is None:
            say(f"relay {settings.relay.name} knows this database: nothing to adopt")
            return
        if not yes and not sys.stdin.isatty():
            raise UsageError(
                f"would adopt this database, {adoption.change}: expected --yes, or a terminal to"
                " ask"
            )
        if not yes:
            click.confirm(f"{adoption.change}: adopt this database?", abort=True)
        adopted = take(connection, settings, adoption, who=who, why=why)
    say(f"adopted: {adopted.change}")
