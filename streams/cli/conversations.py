"""`streams conversations`: which conversations wait, and letting go on those that are held."""

from __future__ import annotations

import click

from streams import operate
from streams.cli.choose import Commands, say, say_json
from streams.cli.console import database, show, signed

COLUMNS = ("key", "topic", "open", "head", "status", "error_code", "since")


@click.group(cls=Commands)
def conversations() -> None:
    """Look at conversations that wait, and release them."""


@conversations.command("list")
@click.option("--held", is_flag=True, help="Only those that wait for an operator.")
@click.option("--key", help="Only this conversation.")
@click.option("--source", help="Only those of this other system; '' for our own.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="At most so many."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_(held: bool, key: str | None, source: str | None, limit: int, as_json: bool) -> None:
    """List conversations with open messages, the longest waiting first.

    Each is shown with the message it waits for.
    """
    with database() as (_, connection):
        conversations_waiting = operate.waiting(
            connection, key=key, held=held, source=source, limit=limit
        )
    if as_json:
        say_json(conversations_waiting)
    elif conversations_waiting:
        show(conversations_waiting, COLUMNS)
    else:
        say("no conversation waits")


@conversations.command()
@click.argument("key")
@click.option("--topic", help="Only on this topic, if several have this key.")
@signed
def release(key: str, topic: str | None, who: str, why: str | None) -> None:
    """Let the conversation KEY go on past the dead messages that hold it; they stay dead.

    Workers take it up within half a minute.
    """
    with database() as (_, connection):
        ids = operate.release(connection, key, operate.Operator(who, why), topic=topic)
    say(f"released: held by {', '.join(map(str, ids))}")
