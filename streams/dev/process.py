"""A child process with its own process group and log file that cannot outlive its parent.

Start children from a thread that lives as long as they shall (the main thread): Linux ties "dies
with its parent" to the thread that started the child.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import psutil

from streams.errors import ServiceUnreachable
from streams.interpreter import interpreter

# As the C library says it, and as PostgreSQL does after a write that was cut short.
DISK_FULL = ("No space left on device", "Check free disk space")


class Child(Protocol):
    """What a `Process` asks of the process that it stands for."""

    @property
    def pid(self) -> int:
        """Its id, which is its group's too."""

    def poll(self) -> int | None:
        """How it ended (negative: by which signal); None while it runs."""

    def wait(self) -> int:
        """How it ended, once it has."""


_GUARD = Path(__file__).with_name("guard.py")


class Process:
    """One child; `death` is its signal when we die.

    `owned` is the folder it must own (root becomes nobody then). `stdin` is what it reads on its
    standard input. `environ` is what its next start is given.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        *,
        environ: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        death: signal.Signals = signal.SIGKILL,
        owned: Path | None = None,
        stdin: str | None = None,
    ) -> None:
        self._stdin = stdin
        guard = (
            interpreter(),
            "-I",
            "-S",
            _GUARD,
            str(os.getpid()),
            str(int(death)),
            owned or "-",
        )
        self._command = [str(part) for part in (*guard, *command)]
        self.log = log
        self.environ = environ
        self._cwd = cwd
        self._child: Child | None = None
        self._said_before = 0

    @property
    def pid(self) -> int | None:
        """The pid while it runs."""
        return self._child.pid if self._child and self.running else None

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def returncode(self) -> int | None:
        """How it ended (negative: by which signal).

        None while it runs or before it was launched.
        """
        return self._child.poll() if self._child else None

    def launch(self) -> None:
        """Start it, without waiting for anything."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._said_before = log.tell()
            child = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL if self._stdin is None else subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environ,
                cwd=self._cwd,
                start_new_session=True,
            )
        self._child = child
        if self._stdin is not None and child.stdin is not None:
            # Little enough for the pipe; one that has ended by now says why itself.
            with contextlib.suppress(BrokenPipeError), child.stdin as stdin:
                stdin.write(self._stdin.encode())

    async def finish(self, seconds: float) -> int:
        """Its exit status; killed when it takes longer."""
        if not await until(lambda: not self.running, seconds):
            self.kill()
        return self._child.wait() if self._child else 0

    async def stop(self, how: signal.Signals = signal.SIGTERM, grace: float = 10.0) -> None:
        """Ask it to end, and kill what is left of its group after `grace` seconds."""
        if self._child is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child.pid, how)
        await until(lambda: not self.running, grace)
        self.kill()

    def kill(self) -> None:
        """SIGKILL to it and all its descendants, at once; returns when they are gone."""
        if self._child is None:
            return
        family = _family(self._child.pid) if self.running else []
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        self._child.wait()
        _wait_until_gone(family)

    def last_words(self, lines: int = 4, *, between: str = " | ") -> str:
        """The last lines it wrote since its launch, joined by `between`.

        The frames of a Java stack trace are left out.
        """
        written = [line.strip() for line in self.output().splitlines()]
        return between.join(
            [line for line in written if line and not line.startswith("at ")][-lines:]
        )

    def output(self) -> str:
        """What it wrote since its launch, at most the last 8 kB."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(self._said_before, log.seek(0, os.SEEK_END) - 8000))
                return log.read().decode(errors="replace")
        except OSError:
            return ""


async def until(condition: Callable[[], bool], seconds: float, *, pause: float = 0.02) -> bool:
    """Whether the condition came true within the seconds; asked again after each pause."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(pause)
    return True


def failure(service: str, process: Process, log: Path) -> ServiceUnreachable:
    """Why a service did not start, as one line that names its log."""
    if any(sign in process.output() for sign in DISK_FULL):
        return ServiceUnreachable(
            f"{service} did not start: the disk that holds {log.parent} is full"
        )
    end = "is not ready in time" if process.running else f"ended with status {process.returncode}"
    return ServiceUnreachable(
        f"{service} did not start ({end}; log: {log}): {process.last_words() or 'no output'}"
    )


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _wait_until_gone(family: Sequence[psutil.Process], seconds: float = 10.0) -> None:
    # A zombie counts as gone: whoever runs as pid 1 may reap it late, but it holds neither port nor
    # memory.
    deadline = time.monotonic() + seconds
    while any(map(_is_alive, family)) and time.monotonic() < deadline:
        time.sleep(0.01)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
