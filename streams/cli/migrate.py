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
def migrate(plan: bool) -> None:
    """Bring the database up to date, and create what the relay needs."""
    settings = load()
    if plan:
        lacking = migrations.plan(settings)
        for each in lacking:
            say(f"{each.number}  {each.purpose}\n      locks {each.locks}")
        if not lacking:
            say(f"nothing to do: the database is at revision {revisions.head()}")
        return
    for line in migrations.migrate(settings, configured(settings)):
        say(line)
