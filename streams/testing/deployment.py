"""One test's relay and workers: real processes on shared services, with names of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import sysconfig
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import msgspec

from streams.database import connect_sync, query
from streams.database import migrate as migrations
from streams.dev.ports import HOST, free_port
from streams.dev.probe import health
from streams.dev.process import Process
from streams.dev.procfile import program
from streams.errors import StreamsError
from streams.registry import configured
from streams.settings import FILE, Settings, load
from streams.testing.fates import Fates

READY_SECONDS = 60.0
PERSIST_SECONDS = 30.0
EVERY = 0.05
LINES = 25  # of each process's log, for a test that failed


class NotPersisted(StreamsError):
    """What a test waited for did not happen: the message says what happened instead."""


@dataclass
class Deployment(AbstractContextManager["Deployment"]):
    """A test's processes.

    `environ` is what they get beside the environment without our own names, `directory` has their
    logs. Leaving the block kills them, and prints how they ended and what they said last: pytest
    shows that of a test that failed.
    """

    environ: dict[str, str]
    directory: Path
    processes: list[Process] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)

    @classmethod
    def on(cls, database: str, broker: str, directory: Path) -> Deployment:
        """As faust.yml and the environment say, but on these services.

        Topics, group and slot are named after the database.
        """
        name = urlsplit(database).path.strip("/")
        file = directory / "faust.yml"
        # JSON is YAML.
        file.write_bytes(msgspec.json.encode(_alone(load(), database, broker, name)))
        return cls({"STREAMS_CONFIG": str(file)}, directory)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, process in enumerate(self.processes):
            ended = "running" if process.running else f"ended with status {process.returncode}"
            process.kill()
            output = process.last_words(LINES, between="\n")
            sys.stdout.write(f"--- process {number}, {ended}: {process.log.name}\n{output}\n")

    @property
    def settings(self) -> Settings:
        """The settings of its processes: give them to `outbox.start` in the test."""
        file = Path(self.environ.get("STREAMS_CONFIG") or FILE)
        content = file.read_bytes() if file.is_file() else None
        return _settings(tuple(self.environ.items()), file.absolute(), content)

    @property
    def url(self) -> str:
        """The database."""
        return self.settings.database_url

    def up(self, workers: int = 1) -> None:
        """Migrate, then start a relay and so many workers, and wait until all are ready."""
        self.migrate()
        for _ in range(workers):
            self.worker()
        self.relay()
        self._wait_until_ready()

    def migrate(self) -> None:
        """What `streams migrate` does: publication and slot too."""
        settings = self.settings
        for _ in migrations.migrate(settings, configured(settings)):
            pass

    def relay(self, **environ: str) -> Process:
        """One more relay."""
        return self.start("streams", "relay", **environ)

    def worker(self, **environ: str) -> Process:
        """One more worker, on a web port of its own."""
        self.ports.append(free_port())
        port = str(self.ports[-1])
        return self.start("faust", "-A", "streams.app", "worker", STREAMS_WEB__PORT=port, **environ)

    def start(self, *command: str, **environ: str) -> Process:
        """Run a command of this environment as a subprocess, its output in `directory`."""
        log = self.directory / f"{command[0]}-{len(self.processes)}.log"
        process = Process(
            [program(command[0]), *command[1:]],
            log,
            environ={**inherited(), **self.environ, **environ},
        )
        process.launch()
        self.processes.append(process)
        return process

    def query(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run one statement on the database, committed; returns its rows."""
        with connect_sync(self.url) as connection:
            cursor = connection.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []

    def fates(self, ids: Iterable[int]) -> Fates:
        """What became of these messages so far."""
        with connect_sync(self.url) as connection:
            rows = connection.execute(query("fates"), {"ids": list(ids)}).fetchall()
        return Fates(rows, sum(row[3] == "consumed" for row in rows))

    async def until_persisted(
        self, ids: int | Iterable[int], seconds: float = PERSIST_SECONDS
    ) -> Fates:
        """Wait until all these messages are consumed; returns their fates.

        NotPersisted, with the state of each, when one is dead, the time is over, or a process has
        ended.
        """
        return await asyncio.to_thread(self.until_persisted_sync, ids, seconds)

    def until_persisted_sync(
        self, ids: int | Iterable[int], seconds: float = PERSIST_SECONDS
    ) -> Fates:
        """Like `until_persisted`, for a test without an event loop."""
        wanted = [ids] if isinstance(ids, int) else list(ids)
        deadline = time.monotonic() + seconds
        while True:
            fates = self.fates(wanted)
            if fates.written == len(wanted):
                return fates
            left = [fate for fate in fates if fate.status != "consumed"]
            state = (
                "; ".join(map(str, left[:10]))
                or f"only {len(fates)} of {len(wanted)} have an outbox row"
            )
            if any(fate.status in ("dead", "discarded") for fate in left):
                raise NotPersisted(f"not persisted: {state}")
            self._still(deadline, f"not persisted within {seconds:g} s: {state}")

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not (
            self._leads() and all(health(f"http://{HOST}:{port}/").ready for port in self.ports)
        ):
            self._still(deadline, f"relay and workers are not ready within {READY_SECONDS:g} s")

    def _leads(self) -> bool:
        """Whether one of our processes is the leading relay."""
        return bool(
            self.query(
                "SELECT pid FROM relay_position WHERE pid = ANY(%s)",
                [process.pid for process in self.processes],
            )
        )

    def _still(self, deadline: float, complaint: str) -> None:
        """Wait a little; NotPersisted when the time is over, or when a process has ended.

        A process that was stopped on purpose does not count.
        """
        for process in self.processes:
            if process.returncode not in (None, 0, -signal.SIGKILL, -signal.SIGTERM):
                raise NotPersisted(
                    f"a process ended with status {process.returncode}: {process.last_words()}"
                )
        if time.monotonic() > deadline:
            raise NotPersisted(f"{complaint} (logs in {self.directory})")
        time.sleep(EVERY)


def inherited() -> dict[str, str]:
    """Our environment without the settings in it, and with what is importable here."""
    ours = ("STREAMS_", "DATABASE_URL", "BROKER_URL")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    standard = sysconfig.get_path("stdlib")
    paths = [path or os.getcwd() for path in sys.path if not path.startswith(standard)]
    return {**environ, "PYTHONPATH": os.pathsep.join(path for path in paths if os.path.isdir(path))}


@lru_cache(maxsize=32)
def _settings(
    environ: tuple[tuple[str, str], ...], _file: Path, _content: bytes | None
) -> Settings:
    """As `load` reads them, once for each content of the file: who waits asks again and again."""
    return load(environ=dict(environ))


def _alone(settings: Settings, database: str, broker: str, name: str) -> dict[str, Any]:
    """The settings as plain data, for a broker of a test.

    It is one broker without a login; names are such that nobody else has, and there are no traces.
    Nor is there any other place that the settings name: pages act on this database alone, and
    nothing goes to an archive.
    """
    values: dict[str, Any] = msgspec.to_builtins(settings)
    for topic in (values["topic"], *values["topics"].values()):
        topic["replication_factor"] = 1
    values["database"]["url"] = database
    values["broker"] = {"url": broker, "topic_prefix": f"{name}."}
    values["relay"]["name"] = name
    values["worker"]["group"] = name
    values["connect"] = values["telemetry"] = {}
    values["web"] |= {"database_url": None, "acts_url": None, "probe": None}
    values["outbox"]["archive"] = None
    if values["relay"]["mode"] == "debezium":
        values["relay"]["mode"] = "auto"
    return values
