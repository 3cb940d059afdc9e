"""`streams archive`: what retention wrote away, whether it is whole, and a range of it back."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
import msgspec
import psycopg

from streams.archive.parts import TABLES, ArchiveFailed, Part
from streams.archive.restore import incomplete, parts_of, restore, table_name
from streams.archive.store import Store
from streams.cli.bar import bar
from streams.cli.choose import Commands, say, say_json
from streams.database import connect_sync
from streams.database.refusals import told
from streams.errors import UsageError
from streams.message_id import MAX_ID
from streams.settings import load, redact

F = TypeVar("F", bound=Callable[..., Any])
ID = click.IntRange(0, MAX_ID)


def _from(command: F) -> F:
    described = "The folder or URL.  Default: outbox.archive."
    return click.option("--from", "target", metavar="TARGET", help=described)(command)


@click.group("archive", cls=Commands)
def archive() -> None:
    """Look at what retention archived, and bring a range of it back."""


@archive.command("list")
@_from
@click.option("--json", "as_json", is_flag=True, help="As JSON, one object for each part.")
def list_(target: str | None, as_json: bool) -> None:
    """List the ranges of the archive, one line for each part.

    A range has a second part when what was left in it went later. Exit code 1 when a manifest is
    not believed: stderr names it.
    """
    store = _store(target)
    parts, faults = store.parts()
    if as_json:
        say_json([_summary(part) for part in parts])
    elif parts:
        say("\n".join(_line(part) for part in parts))
    elif not faults and target is not None and not store.there:
        raise UsageError(f"--from is {store.shown}: nothing is there")
    elif not faults:
        say("the archive is empty")
    for fault in faults:
        say(f"streams: {fault}", err=True)
    if faults:
        sys.exit(1)


@archive.command()
@click.argument("outbox_id", metavar="ID", type=ID)
@_from
@click.option("--json", "as_json", is_flag=True, help="The manifests, each with its fault.")
def show(outbox_id: int, target: str | None, as_json: bool) -> None:
    """Read the range that has the message ID, and say whether its files are as they were written.

    Exit code 1 when one is not, or when a part is missing.
    """
    store = _store(target)
    parts = parts_of(store, outbox_id)
    faults = {part.name: _fault(store, part) for part in parts}
    if as_json:
        say_json([{**msgspec.to_builtins(part), "fault": faults[part.name]} for part in parts])
    else:
        say("\n".join(f"{_line(part)}: {faults[part.name] or 'whole'}" for part in parts))
    _say_incomplete(parts)
    if any(faults.values()):
        sys.exit(1)


def _fault(store: Store, part: Part) -> str | None:
    """What is wrong with its files."""
    try:
        store.verify(part)
    except ArchiveFailed as error:
        return str(error)
    return None


@archive.command("restore")
@click.argument("outbox_id", metavar="ID", type=ID)
@_from
def restore_(outbox_id: int, target: str | None) -> None:
    """Bring the range that has the message ID back, into two tables of its own.

    They are outbox_restored_FIRST and outbox_state_restored_FIRST, to be looked at, joined, and
    dropped by hand. Nothing of it is published or worked again.
    """
    store = _store(target)
    parts = parts_of(store, outbox_id)
    rows = sum(part.outbox.rows + part.outbox_state.rows for part in parts)
    settings, done = load(), 0
    where = redact(settings.database_url)
    try:
        with (
            connect_sync(settings.database_url, application_name="streams archive") as connection,
            bar("restore", float(rows)) as advance,
        ):
            for count in restore(connection, store, parts):
                advance(float(count - done))
                done = count
    except psycopg.Error as error:
        raise told(error, where, "nothing was restored") from None
    names = " and ".join(table_name(table, parts[0].first) for table in TABLES)
    say(f"messages {parts[0].first} to {parts[0].last} are in {names}: drop them when you are done")
    _say_incomplete(parts)


def _say_incomplete(parts: Sequence[Part]) -> None:
    """End with 1 when a part is missing that has the rest of the range."""
    if lack := incomplete(parts):
        say(f"streams: {lack}", err=True)
        sys.exit(1)


def _store(target: str | None) -> Store:
    target = target or load().outbox.archive
    if target is None:
        raise UsageError("outbox.archive is not set: expected --from and a folder or URL")
    return Store(target)


def _summary(part: Part) -> dict[str, Any]:
    names = ("first", "last", "part", "whole", "at", "oldest", "newest", "bytes")
    about = {name: getattr(part, name) for name in names}
    return {**about, "rows": part.outbox.rows, "states": part.outbox_state.rows}


def _line(part: Part) -> str:
    again = "" if part.part == 1 else f", part {part.part}"
    return (
        f"messages {part.first} to {part.last}{again}: {part.outbox.rows:,} rows,"
        f" {part.bytes / 1e6:,.1f} MB, archived at {part.at}"
    )
