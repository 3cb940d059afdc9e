"""The `streams` command: a module for each group of commands, loaded on use.

An error is one line.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, NoReturn

import click

from streams.cli.choose import Commands, say
from streams.errors import StreamsError
from streams.extras import extra_of, lacks
from streams.registry import look_here

# Command -> where it lives. Loading on use keeps `streams --help` quick and `streams env` free of
# Kafka and Faust.
COMMANDS = {
    "init": "streams.cli.scaffold:init",
    "new": "streams.cli.scaffold:new",
    "up": "streams.cli.services:up",
    "down": "streams.cli.services:down",
    "env": "streams.cli.services:env",
    "status": "streams.cli.status:status",
    "doctor": "streams.cli.doctor:doctor",
    "settings": "streams.cli.settings:settings",
    "migrate": "streams.cli.migrate:migrate",
    "relay": "streams.cli.relay:relay",
    "enqueue": "streams.cli.enqueue:enqueue",
    "topic": "streams.cli.topic:topic",
    "trace": "streams.cli.trace:command",
    "dead": "streams.cli.dead:dead",
    "conversations": "streams.cli.conversations:conversations",
    "biz-types": "streams.cli.biz_types:biz_types",
    "audit": "streams.cli.audit:command",
    "retention": "streams.cli.retention:retention",
    "archive": "streams.cli.archive:archive",
    "erase": "streams.cli.erase:command",
    "web": "streams.cli.web:web",
    "completion": "streams.cli.completion:completion",
}
# Commands that start development services need all of them, whichever module is missed first.
DEV_COMMANDS = ("up", "down", "env")


class _Commands(Commands):
    """Looks a command up in COMMANDS and imports only its module."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        try:
            command: click.Command = getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            if (extra := _extra(cmd_name, error)) is None:
                raise
            return _Lacking(cmd_name, extra, error)
        return command


class _Lacking(click.Command):
    """Stands for a command whose extra is not installed.

    Help says so, and running it is refused.
    """

    def __init__(self, name: str, extra: str, error: ModuleNotFoundError) -> None:
        super().__init__(
            name, help=f"Needs the extra {extra!r}: pip install 'outbox-streams[{extra}]'."
        )
        self._refusal = lacks(f"`{name}`", extra, error)

    def make_context(self, *_: Any, **__: Any) -> NoReturn:
        raise self._refusal


def _extra(command: str | None, error: ModuleNotFoundError) -> str | None:
    extra = extra_of(error)
    return "dev" if extra and command in DEV_COMMANDS else extra


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="outbox-streams", prog_name="streams")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Write history without making your user wait, and without ever losing it.

    Exit codes: 0 fine, 1 the answer is bad news, 2 wrong usage or settings, 3 a service cannot be
    reached.
    """
    ctx.obj = {"debug": debug}


def main(args: list[str] | None = None) -> None:
    """Run the command line; ends the process with design's exit codes."""
    arguments = sys.argv[1:] if args is None else args
    look_here()
    try:
        try:
            cli.main(args=arguments, prog_name="streams", standalone_mode=True)
        except ModuleNotFoundError as error:
            # Some commands load what they need only on the way.
            command = next((each for each in arguments if each in COMMANDS), None)
            if (extra := _extra(command, error)) is None:
                raise
            raise lacks(f"`{command}`", extra, error) from error
    except StreamsError as error:
        if "--debug" in arguments:
            raise
        say(f"streams: {error}", err=True)
        sys.exit(error.exit_code)
