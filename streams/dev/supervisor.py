"""`streams up`: services, migrations, then the Procfile's processes.

They are kept running until told to stop.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from streams.dev.ports import own_address, remembered_port
from streams.dev.probe import health
from streams.dev.process import Process
from streams.dev.procfile import WORKER, Program, command, lines, program, search_path
from streams.dev.reload import Stamp, changed, files_of
from streams.dev.scoreboard import begun, keep_score
from streams.dev.screen import Screen
from streams.dev.services import Services, services, serving
from streams.dev.supervised import Supervised, kept_running
from streams.dev.workplace import Note, Workplace, disk_error
from streams.errors import ServiceUnreachable, StreamsError, UsageError
from streams.groups import TaskGroup
from streams.interpreter import interpreter
from streams.settings import AGENTS, FILE, Settings, load, redact

TROUBLE = "streams.dev.trouble"
READY_SECONDS = 120.0
MIGRATE_SECONDS = 120.0
STEADY_SECONDS = 2.0
KILL_SECONDS = 45.0  # between two kills of a worker, with `trouble`
RELOAD_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What was asked of `streams up`."""

    workers: int = 1
    demo: bool = False
    detached: bool = False
    relay: str = "cdc"
    trouble: bool = False
    reload: bool = False


def up(workplace: Workplace, options: UpOptions, screen: Screen) -> None:
    """Run until SIGINT, SIGTERM or SIGHUP; everything is stopped when this returns or raises."""
    with screen, _one_error(workplace), workplace.claimed():
        asyncio.run(Supervisor(workplace, options, screen).run())


class Supervisor:
    """The services and processes of one `streams up`."""

    def __init__(self, workplace: Workplace, options: UpOptions, screen: Screen) -> None:
        self._workplace, self._options, self._screen = workplace, options, screen
        self._services: Services = services(workplace, screen, connect=options.relay == "debezium")
        self._settings = load()  # once: a file that is being written now ends nothing
        self._settings_file = Path(os.environ.get("STREAMS_CONFIG", "").strip() or FILE)
        self._processes: list[Supervised] = []
        self._ready = False

    async def run(self) -> None:
        """Start everything, wait for the end, stop in order.

        The order is workers, relay, kafka, postgresql.
        """
        programs = list(self._programs())
        for pages in [each.web for each in programs if each.web is not None][:1]:
            self._screen.line(f"pages       http://127.0.0.1:{pages}/outbox/ (in a few seconds)")
        with self._stopped_by_signals():
            try:
                self._screen.busy("starting PostgreSQL and Kafka")
                async with serving(self._services, self._screen, self._write_note):
                    self._screen.line(f"postgresql  {redact(self._services.postgres.url)}")
                    self._screen.line(f"kafka       {self._services.kafka.url}")
                    if self._services.connect:
                        self._screen.line(f"connect     {self._services.connect.url}")
                    await self._migrate()
                    await self._run(programs)
            except asyncio.CancelledError:
                self._screen.line("stopped")
            finally:
                self._screen.busy(None)

    async def _run(self, programs: list[Program]) -> None:
        environ = self._environ()
        self._processes = [
            Supervised(each, self._workplace, environ, self._screen.line, self._write_note)
            for each in programs
        ]
        workers = [each for each in self._processes if each.program.web is not None]
        others = [each for each in self._processes if each.program.web is None]
        url = self._services.postgres.url
        counters = await begun(url)
        # Before a worker imports them: whoever saves a file meanwhile is not overlooked.
        files = await self._files() if self._options.reload else {}
        async with kept_running(others), kept_running(workers):
            await self._announce()
            async with TaskGroup() as beside:
                if self._options.trouble:
                    beside.create_task(self._kill_workers(workers))
                if self._options.reload:
                    beside.create_task(self._reload(workers, files))
                if self._options.demo and not self._options.detached:
                    await keep_score(url, counters, self._workplace.demo, self._screen)
                await asyncio.Event().wait()

    async def _kill_workers(self, workers: list[Supervised]) -> None:
        """One after the other, for ever; each is started again."""
        while workers:
            for each in workers:
                await asyncio.sleep(KILL_SECONDS)
                await asyncio.to_thread(each.kill)

    async def _reload(self, workers: list[Supervised], before: Stamp) -> None:
        """Start workers again when a file of their packages is other than before.

        When it is that of the settings, all processes.
        """
        while True:
            await asyncio.sleep(RELOAD_SECONDS)
            if not changed(before, await self._files()):
                continue
            after = await self._whole()
            files, now = changed(before, after), await self._files()
            # The settings may name other packages; whoever saves a file meanwhile is seen next.
            before = {file: after.get(file, stamp) for file, stamp in now.items()}
            if self._settings_file in files:
                self._screen.line(f"{self._settings_file.name} changed, all processes start again")
                environ = self._environ()
                for each in self._processes:
                    each.renew(environ)
            elif files:
                self._screen.line(f"{files[0].name} changed, the workers start again")
                for worker in workers:
                    worker.renew()

    async def _whole(self) -> Stamp:
        """The files once they stay as they are, and the settings can be read; those are ours then.

        An editor may have written half of them: what runs goes on meanwhile.
        """
        before, refused = await self._files(), ""
        while True:
            await asyncio.sleep(RELOAD_SECONDS)
            after = await self._files()
            if not changed(before, after):
                try:
                    self._settings = load()
                except UsageError as error:
                    if str(error) != refused:
                        self._screen.line(f"waiting for settings that can be used: {error}")
                    refused = str(error)
                else:
                    return after
            before = after

    async def _files(self) -> Stamp:
        agents = self._settings.agents
        packages = [each for each in agents if not f"{each}.".startswith(f"{AGENTS}.")]
        return await asyncio.to_thread(files_of, packages, self._settings_file)

    def _programs(self) -> Iterator[Program]:
        ports: set[int] = set()
        wanted = self._settings.web.probe
        for name, line in lines(self._workplace.folder).items():
            words = command(line)
            if name != WORKER:
                yield Program(name, words)
                continue
            for number in range(1, self._options.workers + 1):
                each = f"{WORKER}.{number}"
                ports.add(port := remembered_port(self._workplace.port_memory(each), avoid=ports))
                probe = None
                if wanted is not None:
                    memory = self._workplace.port_memory(f"{each}.probe")
                    probe = own_address(wanted, memory, avoid=ports)
                    ports.add(int(probe.rpartition(":")[2]))
                    if probe != wanted:
                        self._screen.line(f"{each} serves health at {probe}, {wanted} is taken")
                yield Program(each, words, port, probe)
        if self._options.demo:
            self._workplace.demo.unlink(missing_ok=True)
            trouble = ("--trouble",) if self._options.trouble else ()
            counts = ("--counts", str(self._workplace.demo))
            yield Program("demo", (interpreter(), "-m", "streams.dev.demo", *counts, *trouble))

    def _environ(self) -> dict[str, str]:
        if self._options.trouble:
            self._workplace.trouble.touch()
        troubled = self._workplace.trouble.exists()
        agents = (
            {"STREAMS_AGENTS": json.dumps([*self._settings.agents, TROUBLE])} if troubled else {}
        )
        return {
            **os.environ,
            **agents,
            **self._services.environ,
            **elsewhere(
                self._settings, self._services.postgres.url, self._workplace.root / "archive"
            ),
            "PATH": search_path(),
            "PYTHONUNBUFFERED": "1",
            "STREAMS_RELAY__MODE": self._options.relay,
        }

    async def _migrate(self) -> None:
        self._screen.busy("migrating the database")
        log = self._workplace.log("migrate")
        process = Process(
            (program("streams"), "migrate", "--timeout", f"{MIGRATE_SECONDS / 2:g}"),
            log,
            environ=self._environ(),
            cwd=self._workplace.folder,
        )
        process.launch()
        try:
            status = await process.finish(MIGRATE_SECONDS)
        finally:
            process.kill()
        if status != 0:
            error = StreamsError(
                f"`streams migrate` ended with status {status} (log: {log}):"
                f" {process.last_words(1)}"
            )
            error.exit_code = status if status in (2, 3) else 1
            raise error

    async def _announce(self) -> None:
        """Say where everything is, and when all of it is ready."""
        self._screen.busy("waiting until everything is ready")
        for each in self._processes:
            self._screen.line(f"{each.program.name:<11} {each.running.web or 'running'}")
        await self._all_ready()
        self._ready = True
        self._write_note()
        self._screen.busy(None)
        how = "`streams down` stops" if self._options.detached else "`streams down` or Ctrl-C stops"
        self._screen.line(f"ready; logs are in {self._workplace.logs}, {how} everything")

    async def _all_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        waiting = self._processes
        while waiting:
            await asyncio.sleep(0.2)
            waiting = [each for each in waiting if not await _is_ready(each)]
            if waiting and time.monotonic() > deadline:
                logs = ", ".join(f"{each.program.name} ({each.log})" for each in waiting)
                raise ServiceUnreachable(f"not ready after {READY_SECONDS:g} s: {logs}")

    def _write_note(self) -> None:
        note = Note(
            pid=os.getpid(),
            ready=self._ready,
            database_url=self._services.postgres.url,
            broker_url=self._services.kafka.url,
            postgresql_pid=self._services.postgres.pid,
            kafka_pid=self._services.kafka.pid,
            processes=tuple(each.running for each in self._processes),
            passfile=str(self._services.postgres.passfile),
        )
        self._workplace.write(note)

    @contextmanager
    def _stopped_by_signals(self) -> Iterator[None]:
        """The first signal stops everything in order; a second one kills what still runs."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

        def stop() -> None:
            for which in stops:
                loop.add_signal_handler(which, self._kill)
            self._screen.busy("stopping (once more: at once)")
            if task is not None:
                task.cancel()

        for which in stops:
            loop.add_signal_handler(which, stop)
        try:
            yield
        finally:
            for which in stops:
                loop.remove_signal_handler(which)

    def _kill(self) -> None:
        for each in self._processes:
            each.kill()
        self._services.kill()


async def _is_ready(each: Supervised) -> bool:
    """A worker says so itself; of the others it is known that they did not end at once."""
    running = each.running
    if running.web is None:
        return running.pid is not None and each.age > STEADY_SECONDS
    return (await asyncio.to_thread(health, running.web)).ready


@contextmanager
def _one_error(workplace: Workplace) -> Iterator[None]:
    """Out of a group of errors the one that a person needs, with the file system's in our words."""
    try:
        yield
    except OSError as error:
        raise disk_error(workplace.root, error) from None
    except BaseExceptionGroup as group:
        known = _first(group)
        if isinstance(known, OSError):
            raise disk_error(workplace.root, known) from None
        if isinstance(known, StreamsError):
            raise known from None
        raise


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    errors: BaseException | None = group.split((StreamsError, OSError))[0]
    while isinstance(errors, BaseExceptionGroup):
        errors = errors.exceptions[0]
    return errors


def elsewhere(settings: Settings, database: str, archive: Path) -> dict[str, str]:
    """Variables that keep what runs here away from other databases and archives of the settings.

    Pages of a trial that act on what `web.acts_url` names would act on production.
    """
    own = {
        "STREAMS_WEB__DATABASE_URL": (settings.web.database_url, database),
        "STREAMS_WEB__ACTS_URL": (settings.web.acts_url, database),
        "STREAMS_OUTBOX__ARCHIVE": (settings.outbox.archive, str(archive)),
    }
    return {name: here for name, (there, here) in own.items() if there is not None}
