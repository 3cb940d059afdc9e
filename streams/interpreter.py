"""The Python of this environment, as a program that can be started from any host process."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from streams.errors import StreamsError

_NAMES = (f"python{sys.version_info.major}.{sys.version_info.minor}", "python3", "python")


def interpreter() -> str:
    """The path of the program; StreamsError when there is none.

    Usually that is `sys.executable`. A program that embeds Python (uWSGI, mod_wsgi, what was frozen
    into one file) has its own path there, or that of the Python which the environment was made of.
    """
    for program in _candidates():
        if os.access(program, os.X_OK) and program.is_file():
            return str(program)
    raise StreamsError(
        f"no Python is in {Path(sys.prefix, 'bin')}, and {sys.executable or 'this program'} is none"
    )


def _candidates() -> Iterator[Path]:
    executable = Path(sys.executable or "")
    is_python = executable.name.startswith(("python", "pypy"))
    if is_python and executable.parent.parent == Path(sys.prefix):
        yield executable
    # A virtual environment's own, or what it has installed would be missing.
    if Path(sys.prefix, "pyvenv.cfg").is_file():
        yield from (Path(sys.prefix, "bin", name) for name in _NAMES)
    if is_python:
        yield executable
    folders = (Path(sys.prefix, "bin"), Path(sysconfig.get_config_var("BINDIR") or sys.prefix))
    yield from (folder / name for folder in folders for name in _NAMES)
