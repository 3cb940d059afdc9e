"""An audit in a process of its own, so that whoever asks for it goes on with its work meanwhile.

The child (`audit_child.py`) reads what to do on its standard input, which stays open as long as
somebody waits for it: when that ends, the child does.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress

import msgspec

from streams.errors import StreamsError
from streams.interpreter import interpreter
from streams.settings import Settings

REFUSED = 3
"""How the child ends when the audit could not be done: it has said why, in one line."""


class Task(msgspec.Struct, frozen=True):
    """What to audit, and where modules of agents are found."""

    settings: Settings
    full: bool
    path: list[str]


async def audit_apart(settings: Settings, *, full: bool) -> None:
    """Audit as `streams audit` does; the report is written down.

    StreamsError says in one line why it could not be done. Cancelled, the audit ends.
    """
    path = _search_path()
    task = Task(settings, full, path)
    try:
        process = await asyncio.create_subprocess_exec(
            interpreter(),
            "-P",  # what lies in the working folder hides nothing of ours
            "-m",
            "streams.web.audit_child",
            # The host may have found us in a folder of its own settings.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:  # no memory, no more processes, no Python where it was
        reason = error.strerror or type(error).__name__
        raise StreamsError(f"no process can be started to audit: {reason}") from None
    assert process.stdin is not None
    assert process.stderr is not None
    try:
        with suppress(ConnectionError):  # it has ended already, and says why
            process.stdin.write(msgspec.json.encode(task) + b"\n")
            await process.stdin.drain()
        said = await process.stderr.read()
        status = await process.wait()
    finally:
        process.stdin.close()
        if process.returncode is None:
            process.kill()
            await process.stderr.read()  # to its end: nothing of the pipe is left open
            await process.wait()
    if status == REFUSED:
        raise StreamsError(said.decode(errors="replace").strip().splitlines()[-1])
    if status:
        # Never what an exception says: a payload may be in it.
        raise StreamsError(f"the process that audits ended with status {status}")


def _search_path() -> list[str]:
    """Where modules are found here; the working folder by its name."""
    return [os.path.abspath(entry) for entry in sys.path]
