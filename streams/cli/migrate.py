"""`streams migrate`: tables, partitions, biz_types, publication and slot; twice, or from two processes, is safe."""

from __future__ import annotations

import click

from streams.cli.choose import say
from streams.database import migrate as migrations
from streams.registry import configured
from streams.settings import load


@click.command()
def migrate() -> None:
    """Bring the database up to date, and create what the relay needs."""
    settings = load()
    for line in migrations.migrate(settings, configured(settings)):
        say(line)
