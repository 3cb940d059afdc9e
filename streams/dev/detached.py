"""`streams up --detach` starts a daemon and waits for it; `streams down` waits until it is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO

import psutil

from streams.dev.private import private_folder
from streams.dev.procfile import program
from streams.dev.workplace import Workplace, readable_errors
from streams.errors import UsageError

STOP_SECONDS = 60.0


def detach(workplace: Workplace, options: Sequence[str], say: Callable[[str], None]) -> int:
    """Run `streams up` with these options as a daemon.

    0 once everything is ready, else the daemon's exit status.
    """
    if workplace.supervisor() is not None:
        raise UsageError(workplace.who())
    log = workplace.log("up")
    with readable_errors(workplace.root):
        private_folder(workplace.root)
        workplace.logs.mkdir(parents=True, exist_ok=True)
        log.touch()
    with log.open("wb") as output:
        daemon = subprocess.Popen(
            [program("streams"), "up", *options],
            cwd=workplace.folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        with log.open(encoding="utf-8", errors="replace") as said:
            return _follow(workplace, daemon, said, say)
    except BaseException:  # Ctrl-C too: nobody asked for what is half started
        daemon.send_signal(signal.SIGTERM)
        daemon.wait()
        raise


def down(workplace: Workplace) -> bool:
    """Whether there was something to stop; everything has ended when this returns."""
    pid = workplace.supervisor()
    if pid is None:
        return False
    for how in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.kill(pid, how)
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            # It gives its folder free when all it started has ended, and ends itself right after.
            if workplace.supervisor() != pid and not _runs(pid):
                return True
            time.sleep(0.05)
    return True


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _follow(
    workplace: Workplace,
    daemon: subprocess.Popen[bytes],
    output: IO[str],
    say: Callable[[str], None],
) -> int:
    """Pass on what the daemon says until it is ready or has ended."""
    while True:
        status = daemon.poll()
        note = workplace.note()
        for line in output:
            say(line.rstrip("\n"))
        if status is not None:
            return status or 1
        if note is not None and note.pid == daemon.pid and note.ready:
            # It lives on without us: nobody waits for its end.
            daemon.returncode = 0
            return 0
        time.sleep(0.1)
