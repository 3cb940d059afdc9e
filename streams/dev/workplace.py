"""The folder `.dev` of a checkout: who runs here, where services answer, data and logs."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from streams.dev.private import private_folder, write_private
from streams.errors import ServiceUnreachable, StreamsError, UsageError
from streams.settings.secrets import redact


class Running(msgspec.Struct, frozen=True):
    """One supervised process; `web` is the address of its pages."""

    name: str
    pid: int | None
    web: str | None = None


class Note(msgspec.Struct, frozen=True):
    """What `.dev/services.json` says, for its owner only.

    `streams.settings` reads pid, database_url and broker_url.

    `database_url` has a password in it, `passfile` is the file that libpq reads it from.
    """

    pid: int
    ready: bool
    database_url: str
    broker_url: str
    postgresql_pid: int | None
    kafka_pid: int | None
    processes: tuple[Running, ...] = ()
    passfile: str | None = None


class Workplace:
    """The `.dev` folder below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.root = self.folder / ".dev"
        self.postgres = self.root / "postgres"
        self.kafka = self.root / "kafka"
        self.connect = self.root / "connect"
        self.logs = self.root / "logs"
        self.demo = self.root / "demo.json"
        self.trouble = (
            self.root / "trouble"
        )  # there once `--trouble` was asked for: its messages need their agent
        self._note = self.root / "services.json"
        self._lock = self.root / "lock"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def port_memory(self, name: str) -> Path:
        return self.root / "ports" / name

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Only one `streams up` runs in a folder; UsageError says who does."""
        with readable_errors(self.root):
            private_folder(self.root)
            self.logs.mkdir(parents=True, exist_ok=True)
            lock = self._lock.open("a+")
        with lock:
            if not _take(lock.fileno()):
                raise UsageError(self.who())
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            try:
                yield
            finally:
                self._note.unlink(missing_ok=True)

    def supervisor(self) -> int | None:
        """The pid of the `streams up` that runs here."""
        try:
            with self._lock.open("r+") as lock:
                if _take(lock.fileno(), patience=0):
                    return None
                return int(lock.read())
        except (OSError, ValueError):
            return None

    def who(self) -> str:
        """One line about the `streams up` that runs here."""
        note = self.note()
        where = f", postgresql {redact(note.database_url)}, kafka {note.broker_url}" if note else ""
        return (
            f"`streams up` already runs in {self.folder} (pid {self.supervisor()}{where}):"
            " `streams down` stops it"
        )

    def note(self) -> Note | None:
        """What runs here; None when nothing does."""
        with suppress(OSError, msgspec.DecodeError):
            note = msgspec.json.decode(self._note.read_bytes(), type=Note)
            return note if self.supervisor() == note.pid else None
        return None

    def write(self, note: Note) -> None:
        """Replace the note in one step: readers see the old one or the new one."""
        with readable_errors(self.root):
            write_private(self._note, msgspec.json.encode(note).decode())


def _take(lock: int, patience: float = 0.5) -> bool:
    """Whether the lock is ours now; somebody who only looks holds it for an instant."""
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
        else:
            return True


@contextmanager
def readable_errors(root: Path) -> Iterator[None]:
    """An error of the file system is one line."""
    try:
        yield
    except OSError as error:
        raise disk_error(root, error) from None


def disk_error(folder: Path, error: OSError) -> StreamsError:
    """An error of the file system as one line."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ServiceUnreachable(f"the disk that holds {folder} is full")
    return UsageError(f"{error.filename or folder} cannot be written: {error.strerror}")
