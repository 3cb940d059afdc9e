"""`streams trace`: the story of one message, or of the newest messages of one conversation."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from streams.cli.choose import MESSAGE, SINCE, say, say_json
from streams.database import migrate
from streams.errors import StreamsError, UsageError
from streams.message_id import MessageId
from streams.operate import history
from streams.settings import load
from streams.terminal import printable


class NoSuchMessage(StreamsError):
    """There is nothing to tell: the answer is bad news."""


@click.command("trace")
@click.argument("outbox_id", type=MESSAGE, required=False)
@click.option("--key", help="A conversation instead of one message.")
@click.option("--source", default="", help="With --key: a conversation of this other system.")
@click.option(
    "--since", type=SINCE, help="With --key: only what was enqueued since: 30m, 12h, 7d, or a time."
)
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    default=100,
    show_default=True,
    help="With --key: the newest.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(
    outbox_id: MessageId | None,
    key: str | None,
    source: str,
    since: datetime | None,
    limit: int,
    as_json: bool,
) -> None:
    """Tell every stage of one message or conversation, with times; never its text.

    OUTBOX_ID is SOURCE:ID for a message of another system. A conversation is looked for from the
    newest message back, without an index: on a large outbox give --since.
    """
    if (outbox_id is None) == (key is None):
        raise UsageError("expected either OUTBOX_ID or --key")
    if source and key is None:
        raise UsageError("--source goes with --key: another system's message is SOURCE:ID")
    with migrate.connection(load()) as connection:
        migrate.check(connection)
        if key is not None:
            stories = history.conversation(connection, key, source=source, since=since, limit=limit)
        else:
            stories = history.messages(connection, [outbox_id or 0])
        if not stories and isinstance(outbox_id, int) and history.direct(connection, outbox_id):
            raise NoSuchMessage(
                f"message {outbox_id} was written by its caller, while outbox.enabled was false"
            )
    if not stories:
        raise NoSuchMessage(
            f"no message {outbox_id}" if key is None else f"no message has the key {key!r:.80}"
        )
    if as_json:
        say_json(stories if key is not None else stories[0])
    else:
        say("\n\n".join(map(describe, stories)))


def describe(story: history.MessageHistory) -> str:
    """A heading and one line an event."""
    head = (
        f"message {story.outbox_id}  {story.status}  {story.biz_type}  topic {story.topic}  key"
        f" {story.key}"
    )
    events = [f"  {_time(event.at)}  {event.stage}{_about(event.about)}" for event in story.events]
    return "\n".join(map(printable, [head, *events]))


def _about(about: Any) -> str:
    shown = {
        name: _time(value) if isinstance(value, datetime) else str(value)
        for name, value in about.items()
    }
    parts = [f"{name}={text}" for name, text in shown.items()]
    return "  " + " ".join(parts) if parts else ""


def _time(at: datetime | None) -> str:
    if at is None:
        return " " * 24
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
