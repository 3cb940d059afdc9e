"""`streams web`: the operators' pages in a process of their own, and lines for users and tokens."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import sys

import click

from streams import log
from streams.cli.choose import Commands, say
from streams.errors import UsageError
from streams.settings import load, refused_bind

LEAST = 12  # characters of a password


@click.group(cls=Commands, invoke_without_command=True)
@click.option("--host", help="Where to listen; `web.host` unless given.")
@click.option("--port", type=click.IntRange(1, 65535), default=6065, show_default=True)
@click.pass_context
def web(ctx: click.Context, host: str | None, port: int) -> None:
    """Serve the operators' pages, of the deployment that the settings name."""
    if ctx.invoked_subcommand is not None:
        return
    settings = load()
    host = host or settings.web.host
    if refused := refused_bind(settings.web, host):
        raise UsageError(f"--host is {host!r}: {refused}")
    # Imported only here: a password needs no web server.
    from streams.web.server import serve

    log.setup(settings.log, debug=bool(ctx.obj and ctx.obj["debug"]))
    asyncio.run(serve(settings, host, port, say))


@web.command()
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(["viewer", "support", "operator", "admin"]),
    default="viewer",
    show_default=True,
)
def password(name: str, role: str) -> None:
    """Print the line of `web.users` for somebody; asks for the password, or reads it from stdin."""
    from streams.web import passwords

    chosen = (
        click.prompt("Password", hide_input=True, confirmation_prompt=True)
        if sys.stdin.isatty()
        else sys.stdin.readline().rstrip("\n")
    )
    if len(chosen) < LEAST:
        raise UsageError(f"the password has {len(chosen)} characters: expected at least {LEAST}")
    say(f'{_key(name)}: {{password: "{passwords.line(chosen)}", role: {role}}}')


@web.command()
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(["viewer", "support", "operator", "admin"]),
    default="viewer",
    show_default=True,
)
def token(name: str, role: str) -> None:
    """Draw a token for a program: print it once, and the line of `web.tokens` that knows it."""
    drawn = secrets.token_urlsafe(32)
    say(f"the token, shown this once: {drawn}", err=True)
    say(f"{_key(name)}: {{sha256: {hashlib.sha256(drawn.encode()).hexdigest()}, role: {role}}}")


def _key(name: str) -> str:
    if (
        not name.isprintable()
        or not name.strip()
        or len(name) > 100
        or set(name) & set("\"':{}[],#&*!|>%@`")
    ):
        raise UsageError(f"the name is {name!r:.100}: expected a plain word")
    return name
