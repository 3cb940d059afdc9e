"""`streams up`, `down` and `env`: the services and processes of this folder."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from streams.cli.choose import say
from streams.dev import detached
from streams.dev.toolbox import toolbox
from streams.dev.workplace import Workplace
from streams.errors import ServiceUnreachable, UsageError
from streams.settings.secrets import without_password

RELAYS = ("cdc", "poll", "debezium")


@click.command()
@click.option(
    "--detach", is_flag=True, help="Return when everything is ready, and leave it running."
)
@click.option("--demo", is_flag=True, help="Play real conversations through the outbox.")
@click.option(
    "--trouble",
    is_flag=True,
    help="With --demo: a slow biz_type, poison, and a worker killed now and then.",
)
@click.option(
    "--workers", type=click.IntRange(0, 64), default=1, show_default=True, help="How many workers."
)
@click.option(
    "--relay",
    type=click.Choice(RELAYS),
    default="cdc",
    show_default=True,
    help="Which relay publishes.",
)
@click.option(
    "--reload",
    is_flag=True,
    help="Start workers again when a file of an agents' package changes, all with faust.yml.",
)
@click.option("--daemon", is_flag=True, hidden=True, help="What --detach leaves running.")
def up(
    detach: bool, demo: bool, trouble: bool, workers: int, relay: str, reload: bool, daemon: bool
) -> None:
    """Start PostgreSQL, Kafka, relay and workers in this folder, and keep them running."""
    workplace = Workplace(Path.cwd())
    if trouble and not demo:
        raise UsageError("--trouble is trouble for the demo: expected --demo too")
    if detach:
        options = ["--daemon", "--workers", str(workers), "--relay", relay]
        options += [
            name
            for name, wanted in (("--demo", demo), ("--trouble", trouble), ("--reload", reload))
            if wanted
        ]
        sys.exit(detached.detach(workplace, options, say))
    # Imported only here: `env` and `down` need no Kafka client.
    from streams.dev.screen import Screen
    from streams.dev.supervisor import UpOptions
    from streams.dev.supervisor import up as supervise

    wanted = UpOptions(
        workers=workers, demo=demo, detached=daemon, relay=relay, trouble=trouble, reload=reload
    )
    supervise(workplace, wanted, Screen())


@click.command()
def down() -> None:
    """Stop what `streams up` started in this folder."""
    stopped = detached.down(Workplace(Path.cwd()))
    say("stopped" if stopped else "nothing runs in this folder")


@click.command()
def env() -> None:
    """Print shell settings for this folder's services: eval "$(streams env)"."""
    workplace = Workplace(Path.cwd())
    note = workplace.note()
    if note is None:
        raise ServiceUnreachable("nothing runs in this folder: `streams up` starts the services")
    # Without its password, which would stand in the arguments of `psql "$DATABASE_URL"`: libpq
    # reads it from the file.
    url = without_password(note.database_url) if note.passfile else note.database_url
    click.echo(f"export DATABASE_URL={shlex.quote(url)}")
    if note.passfile:
        click.echo(f"export PGPASSFILE={shlex.quote(note.passfile)}")
    click.echo(f"export BROKER_URL={shlex.quote(note.broker_url)}")
    click.echo(f'export PATH={shlex.quote(str(toolbox(workplace.root / "bin")))}:"$PATH"')
