"""What `audit_apart` starts: it audits as told on standard input, and ends when nobody waits."""

from __future__ import annotations

import os
import sys
import threading

import msgspec

from streams.database import migrate
from streams.errors import StreamsError
from streams.extras import extra_of, lacks
from streams.registry import configured
from streams.web.audit_apart import REFUSED, Task

NICE = 10
"""Runs of messages come first."""


def main() -> int:
    """The exit code is 0 when the audit was done, whatever it found."""
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=Task)
    threading.Thread(target=_until_nobody_waits, daemon=True).start()
    os.nice(NICE)
    sys.path[:] = task.path
    try:
        _audit(task)
    except StreamsError as error:
        sys.stderr.write(f"{error}\n")
        return REFUSED
    return 0


def _audit(task: Task) -> None:
    try:
        from streams.audit import audit
    except ImportError as error:
        if (extra := extra_of(error)) is None:
            raise
        raise lacks("an audit", extra, error) from None
    registry = configured(task.settings)
    with migrate.connection(task.settings) as connection:
        migrate.check(connection)
        audit(connection, task.settings, registry, full=task.full)


def _until_nobody_waits() -> None:
    while os.read(0, 1024):  # not through a buffer, whose lock nobody could have at the end
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
