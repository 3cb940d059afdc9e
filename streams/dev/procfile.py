"""What to run, from the Procfile of the folder: every line once, `worker` as often as asked."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from streams.dev.wheels import folder as wheel
from streams.errors import UsageError
from streams.interpreter import interpreter

DEFAULT = """\
relay: streams relay
worker: faust -q -A streams.app worker
"""
WORKER = "worker"


@dataclass(frozen=True, slots=True)
class Program:
    """One process to keep running; `web` is the port of its pages, None when it has none.

    `probe` is where it serves health alone, if that is asked for.
    """

    name: str
    command: tuple[str, ...]
    web: int | None = None
    probe: str | None = None

    @property
    def environ(self) -> dict[str, str]:
        """What is its own alone, of several that read the same settings."""
        ours = {"STREAMS_WEB__PORT": self.web, "STREAMS_WEB__PROBE": self.probe}
        return {name: str(value) for name, value in ours.items() if value is not None}


def lines(folder: Path) -> Mapping[str, str]:
    """Name -> command, from the folder's Procfile or, where there is none, relay and worker."""
    wheel("honcho")
    from honcho.environ import parse_procfile

    file = folder / "Procfile"
    try:
        text = file.read_text(encoding="utf-8") if file.exists() else DEFAULT
        commands: dict[str, str] = dict(parse_procfile(text).processes)
    except (OSError, UnicodeDecodeError, AssertionError) as error:
        raise UsageError(f"{file} cannot be used: {error}") from None
    if not commands:
        raise UsageError(f"{file} names no process: expected lines like `relay: streams relay`")
    return commands


def command(line: str) -> tuple[str, ...]:
    """The words of a command, the program's path resolved; it runs without a shell."""
    words = [os.path.expandvars(word) for word in shlex.split(line)]
    return (program(words[0]), *words[1:])


def program(name: str) -> str:
    """Where a program is: beside the Python that runs this, else on PATH."""
    path = shutil.which(name, path=search_path())
    if path is None:
        raise UsageError(
            f"{name} is neither beside {interpreter()} nor on PATH: is outbox-streams installed"
            " there?"
        )
    return path


def search_path() -> str:
    """PATH with the programs of this Python's environment in front."""
    return os.pathsep.join((str(Path(interpreter()).parent), os.environ.get("PATH", os.defpath)))
