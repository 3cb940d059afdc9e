"""Options that commands share: since when, which ids, and the way everything is printed."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from streams.errors import StreamsError
from streams.message_id import MAX_ID, MessageId, read_name
from streams.terminal import document, printable_lines

_AGO = re.compile(r"(\d{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class Since(click.ParamType):
    """`30m`, `12h`, `7d`, or an ISO 8601 time (UTC unless it says otherwise), as a time."""

    name = "since"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            if ago := _AGO.fullmatch(value):
                return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
            at = datetime.fromisoformat(value)
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r}: expected 30m, 12h, 7d, or a time like 2026-01-31T12:00", param, ctx
            )
        return at if at.tzinfo else at.replace(tzinfo=UTC)


class Message(click.ParamType):
    """An outbox id, or `source:id` of another system's message."""

    name = "id"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> MessageId:
        if isinstance(value, int):
            return value
        try:
            return read_name(value)
        except ValueError:
            self.fail(
                f"{value!r}: expected an id from 1 to {MAX_ID}, or SOURCE:ID of another system's"
                " message",
                param,
                ctx,
            )


class Commands(click.Group):
    """A group whose help tells each command's whole sentence, on as many lines as it takes."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [
            (name, each.get_short_help_str(limit=1000))
            for name, each in commands
            if each and not each.hidden
        ]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


SINCE = Since()
MESSAGE = Message()


def say(text: str, *, err: bool = False) -> None:
    """Print lines, whose control sequences never reach the terminal as such."""
    _write(printable_lines(text), err=err)


def say_json(value: Any) -> None:
    """Print a value as indented JSON, safe for a terminal too."""
    _write(document(value))


def _write(text: str, *, err: bool = False) -> None:
    """StreamsError when the output takes nothing more, as on a full disk."""
    try:
        click.echo(text, err=err)
    except BrokenPipeError:  # whoever reads has seen enough: click ends quietly
        raise
    except OSError as error:
        # What is buffered would be tried, and told, once more at the end.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2 if err else 1)
        raise StreamsError(f"the output cannot be written: {error.strerror}") from None
