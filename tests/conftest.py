"""Real PostgreSQL and real Kafka for the whole session.

Every test gets its own migrated database and its own names.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import select
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import psycopg
import pytest
from xdist.scheduler import LoadFileScheduling

from streams.database import connect_sync
from streams.dev.connect import ConnectWorker
from streams.dev.kafka import KafkaBroker
from streams.dev.postgres import PostgresServer
from streams.dev.process import Process
from streams.testing import services
from streams.testing.deployment import Deployment, inherited
from tests.fixtures import java
from tests.fixtures.copies import Copies
from tests.fixtures.forks import ForkedProcess, Forks

java.set_options()

_numbers = itertools.count(1)

MEMORY, ROOM = "/dev/shm", 4 << 30
SELDOM = 0.15  # seconds between two looks at what takes long: a look costs CPU that others need
_kept: ContextVar[dict[str, psycopg.Connection[Any]] | None] = ContextVar("kept", default=None)


# Slow ones that would come last, where nothing is left for the other processes to do meanwhile.
FIRST = frozenset(("test_web_pages.py", "test_worker.py", "test_worker_broker.py"))

# Files that share a server which only they need: one process has them all, and starts it once.
TOGETHER = {
    "test_relay_debezium.py": "connect",
    "test_relay_modes.py": "connect",
    "test_relay_switch.py": "connect",
    "test_relay_budget.py": "spare",
    "test_worker_broker.py": "spare",
}


def pytest_configure(config: pytest.Config) -> None:
    """Without the long tests a property is tried with fewer examples; with them, a hundred.

    Where others keep the machine busy, slow examples say nothing about the test.
    """
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "busy",
        max_examples=40 if config.getoption("markexpr") == "not long" else 100,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("busy")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In the order of their files, which is that in which xdist gives them out, but for FIRST."""
    items.sort(key=lambda item: item.path.name not in FIRST)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests run in one process, as do those of files that share a server."""

    def scope(nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return TOGETHER.get(file.rpartition("/")[2], file)

    scheduling = LoadFileScheduling(config, log)
    scheduling._split_scope = scope
    return scheduling


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Where nobody watches the dots, the name of a failed test at once, not a quarter later."""
    if report.failed and os.environ.get("CI") and "PYTEST_XDIST_WORKER" not in os.environ:
        sys.stdout.write(f"\nfailed: {report.nodeid} ({report.when})\n")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """With `--durations=N` the slowest N files too, with 0 all."""
    if (count := terminalreporter.config.getoption("durations")) is None:
        return
    seconds: defaultdict[str, float] = defaultdict(float)
    for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
        if isinstance(report, pytest.TestReport):
            seconds[report.nodeid.partition("::")[0]] += report.duration
    terminalreporter.section("slowest files")
    for file in sorted(seconds, key=seconds.__getitem__, reverse=True)[: count or None]:
        terminalreporter.write_line(f"{seconds[file]:.2f}s {file}")


@pytest.fixture(scope="session")
def postgres(streams_postgres: PostgresServer) -> PostgresServer:
    """One real server; tests that stop it start it again on the same port."""
    return streams_postgres


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in memory, where there is room: a broker waits for the disk with each partition.

    A broker that is killed loses nothing by it, no more than with files on a disk.
    """
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM:
        with tempfile.TemporaryDirectory(prefix="outbox-tests-", dir=MEMORY) as folder:
            yield Path(folder)
    else:
        yield tmp_path_factory.mktemp("quick", numbered=False)


@pytest.fixture(scope="session")
def kafka(quick: Path, pytestconfig: pytest.Config) -> Iterator[KafkaBroker]:
    """One real broker; tests that stop it start it again on the same port."""
    with services.kafka(quick / "kafka", pytestconfig) as broker:
        yield broker


@pytest.fixture(scope="session")
def spare(quick: Path, pytestconfig: pytest.Config) -> Iterator[KafkaBroker]:
    """A second real broker, which nobody shares."""
    with services.kafka(quick / "spare", pytestconfig) as broker:
        yield broker


@pytest.fixture
def broker(spare: KafkaBroker) -> Iterator[KafkaBroker]:
    """A broker that a test may stop, kill or silence; the next one finds it running."""
    yield spare
    if spare.pid is None:
        asyncio.run(spare.start())


@pytest.fixture(scope="session")
def connect(
    kafka: KafkaBroker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ConnectWorker]:
    """One real Kafka Connect worker with the real Debezium connector.

    Tests that stop it start it again.
    """
    worker = ConnectWorker(tmp_path_factory.mktemp("connect", numbered=False), kafka)
    asyncio.run(worker.start())
    yield worker
    worker.kill()


@pytest.fixture(scope="session")
def template(streams_template: str) -> str:
    """The name of a migrated database without a slot, to copy."""
    return urlsplit(streams_template).path.strip("/")


@pytest.fixture
def name() -> str:
    """A name no other test uses."""
    return f"t{os.getpid()}_{next(_numbers)}"


@pytest.fixture(scope="session")
def copies(streams_postgres: PostgresServer, streams_template: str) -> Iterator[Copies]:
    """Copies of the template, each made while the test before runs."""
    made = Copies(streams_postgres, streams_template)
    yield made
    made.close()


@pytest.fixture
def database(copies: Copies) -> Iterator[str]:
    """The URL of a fresh migrated database."""
    with copies.take() as url:
        yield url


@dataclass
class World(Deployment):
    """One test's deployment, nothing of it started yet.

    Its settings are its environment alone, whatever faust.yml says.
    """

    forks: Forks | None = None

    @property
    def url(self) -> str:
        """The database."""
        return self.environ["DATABASE_URL"]

    def query(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run one statement on the database, committed; returns its rows.

        While a test waits, its looks share a connection: making one costs more than a look.
        """
        kept = _kept.get()
        if kept is None:
            return super().query(statement, *parameters)
        cursor = _usable(kept, self.url).execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []

    def start(self, *command: str, **environ: str) -> Process:
        """Run a command of ours, forked from a process that has imported it."""
        if self.forks is None:
            return super().start(*command, **environ)
        log = self.directory / f"{command[0]}-{len(self.processes)}.log"
        process = ForkedProcess(
            self.forks, command, log, {**inherited(), **self.environ, **environ}
        )
        process.launch()
        self.processes.append(process)
        return process

    @property
    def topic(self) -> str:
        """The chat history topic of this world."""
        return self.settings.broker.topic_prefix + "chat-history"

    def health(self) -> list[Any]:
        """What each worker that answers says of itself."""
        return [
            answer
            for port in self.ports
            if (answer := _get(f"http://127.0.0.1:{port}/health/ready"))
        ]


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """A process that has imported everything, and forks relays, workers and commands."""
    server = Forks()
    yield server
    server.close()


@pytest.fixture
def world(
    kafka: KafkaBroker, database: str, name: str, tmp_path: Path, forks: Forks
) -> Iterator[World]:
    """A deployment with names of its own on the shared servers."""
    group = name.replace("_", "-")
    found = World(
        {
            "DATABASE_URL": database,
            "BROKER_URL": kafka.url,
            "STREAMS_RELAY__NAME": name,
            "STREAMS_WORKER__GROUP": group,
            "STREAMS_WORKER__SESSION_TIMEOUT": "6",
            "STREAMS_BROKER__TOPIC_PREFIX": f"{group}.",
        },
        tmp_path,
        forks=forks,
    )
    with found:
        yield found


def _usable(kept: dict[str, psycopg.Connection[Any]], url: str) -> psycopg.Connection[Any]:
    """The connection to this database, made anew when the server has ended it."""
    connection = kept.get(url)
    # A server that says something unasked says goodbye.
    if connection is None or connection.closed or select.select([connection], [], [], 0)[0]:
        if connection is not None:
            connection.close()
        connection = kept[url] = connect_sync(url)
        # Tables change meanwhile.
        connection.prepare_threshold = None
    return connection


def _get(url: str) -> Any:
    try:
        with urllib.request.urlopen(url, timeout=3) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return json.load(error)
    except OSError:
        return None


class Eventually(Protocol):
    """How tests wait; never by sleeping."""

    async def __call__(
        self, condition: Callable[..., object], seconds: float = 30.0, *, every: float | None = None
    ) -> Any:
        """The condition's first true value."""


@pytest.fixture
def eventually() -> Eventually:
    """`await eventually(condition, seconds)`: the condition's first true value.

    It looks less often the longer it takes, unless the test says how often. When the time is over
    it fails, and shows the last value.
    """

    async def wait(
        condition: Callable[[], Any], seconds: float = 30.0, *, every: float | None = None
    ) -> Any:
        deadline = asyncio.get_running_loop().time() + seconds
        pause = every or 0.03
        kept: dict[str, psycopg.Connection[Any]] = {}
        before = _kept.set(kept)
        try:
            while True:
                value = condition()
                if value:
                    return value
                if asyncio.get_running_loop().time() > deadline:
                    pytest.fail(f"not within {seconds} s: the condition's last value was {value!r}")
                await asyncio.sleep(pause)
                pause = every or min(pause * 1.25, SELDOM)
        finally:
            _kept.reset(before)
            for connection in kept.values():
                connection.close()

    return wait
