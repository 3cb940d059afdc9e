"""What the commands of the desk share: who acts, where, and how rows are shown."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy import Connection

from streams.database import migrate
from streams.operate.faults import Fault
from streams.settings import Settings, load
from streams.terminal import printable

F = TypeVar("F", bound=Callable[..., Any])


def me() -> str:
    """Who runs this command: a user's name, or the number of one without a name.

    The latter is usual in a container.
    """
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # OSError since Python 3.13
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def signed(command: F) -> F:
    """Options `who` and `why`, for what is written down."""
    command = click.option("--why", help="The reason, written down.")(command)
    return click.option("--who", default=me, help="Default: your user and machine.")(command)


@contextmanager
def database() -> Iterator[tuple[Settings, Connection]]:
    """The configured database, migrated, in no transaction."""
    settings = load()
    with migrate.connection(settings) as connection:
        migrate.check(connection)
        connection.rollback()
        yield settings, connection


def plain_fault(fault: Fault) -> dict[str, Any]:
    """A fault as JSON has it, in a stable shape."""
    return {**asdict(fault), "anchor": fault.anchor}


def show(rows: Sequence[Any], columns: Sequence[str]) -> None:
    """A table of these attributes."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*(Text(_cell(getattr(row, name))) for name in columns))
    # Never cut an id or a time: wider than the terminal if need be.
    Console(highlight=False, width=max(200, Console().width)).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(sep=" ", timespec="seconds").removesuffix("+00:00")
    return "" if value is None or value is False else printable(str(value)[:80])
