"""A folder with only PostgreSQL's client programs, for PATH."""

from __future__ import annotations

from pathlib import Path

from streams.dev.wheels import postgres_bin

CLIENTS = ("psql", "pg_dump", "pg_restore", "pgbench")


def toolbox(folder: Path) -> Path:
    """Links to the wheel's clients in this folder; they find their libraries through the link."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in CLIENTS:
        link, program = folder / name, postgres_bin() / name
        if not link.is_symlink() or link.readlink() != program:
            link.unlink(missing_ok=True)
            link.symlink_to(program)
    return folder
