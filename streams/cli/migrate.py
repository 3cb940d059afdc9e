"""`streams migrate`: tables, partitions, biz_types, publication and slot; twice is safe."""

from __future__ import annotations

import click

from streams.cli.choose import say
from streams.database import migrate as migrations
from streams.database import revisions
from streams.registry import configured
from streams.settings import load


@click.command()
@click.option(
    "--plan", is_flag=True, help="Only say what would be done to the schema, and what that locks."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=migrations.TIMEOUT_SECONDS,
    show_default=True,
    help="Seconds to wait for locks, in all.",
)
def migrate(plan: bool, timeout: float) -> None:
    """Bring the database up to date, and create what the relay needs.

    Each revision is a transaction of its own. Where it waits for a lock, it says for whom, and
    holds up nobody for longer than a moment. Exit code 3 when the time is up: what was done stays,
    run it again.
    """
    settings = load()
    if plan:
        lacking = migrations.plan(settings, configured(settings))
        for each in lacking:
            say(f"{each.number}  {each.purpose}\n      locks {each.locks}")
        if not lacking:
            say(f"nothing to do: the database is at revision {revisions.head()}")
        return
    for line in migrations.migrate(settings, configured(settings), timeout=timeout):
        say(line)
