"""Real PostgreSQL and real Kafka for the whole session; every test gets its own migrated database and its own names."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from streams import deploy
from streams.dev.connect import ConnectWorker
from streams.dev.kafka import KafkaBroker
from streams.dev.postgres import PostgresServer
from streams.dev.process import Process
from streams.registry import configured
from streams.settings import Settings, load

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """One real server; tests that stop it start it again on the same port."""
    server = PostgresServer(tmp_path_factory.mktemp("postgres", numbered=False))
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """One real broker; tests that stop it start it again on the same port."""
    broker = KafkaBroker(tmp_path_factory.mktemp("kafka", numbered=False))
    asyncio.run(broker.start())
    yield broker
    asyncio.run(broker.stop())


@pytest.fixture(scope="session")
def connect(kafka: KafkaBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConnectWorker]:
    """One real Kafka Connect worker with the real Debezium connector; tests that stop it start it again."""
    worker = ConnectWorker(tmp_path_factory.mktemp("connect", numbered=False), kafka)
    asyncio.run(worker.start())
    yield worker
    asyncio.run(worker.stop())


@pytest.fixture(scope="session")
def template(postgres: PostgresServer) -> str:
    """A migrated database without a slot, to copy."""
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE template_streams")
    settings = load(environ={"DATABASE_URL": postgres.url_of("template_streams"), "STREAMS_RELAY__MODE": "poll"})
    list(deploy.migrate(settings, configured(settings)))
    return "template_streams"


@pytest.fixture
def name() -> str:
    """A name no other test uses."""
    return f"t{os.getpid()}_{next(_numbers)}"


@pytest.fixture
def database(postgres: PostgresServer, template: str, name: str) -> Iterator[str]:
    """The URL of a fresh migrated database."""
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield postgres.url_of(name)
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        slots = connection.execute("SELECT slot_name, active_pid FROM pg_replication_slots WHERE database = %s", [name])
        for slot, pid in slots.fetchall():
            if pid:
                connection.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
            connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@dataclass
class World:
    """One test's deployment: its settings, its environment, and the processes it started."""

    environ: dict[str, str]
    directory: Path
    processes: list[Process] = field(default_factory=list)
    ports: list[str] = field(default_factory=list)

    @property
    def settings(self) -> Settings:
        """The settings every process of this world has."""
        return load(environ=self.environ)

    @property
    def url(self) -> str:
        """The database."""
        return self.environ["DATABASE_URL"]

    @property
    def topic(self) -> str:
        """The chat history topic of this world."""
        return self.settings.broker.topic_prefix + "chat-history"

    def migrate(self) -> None:
        """What `streams migrate` does: publication and slot too."""
        settings = self.settings
        list(deploy.migrate(settings, configured(settings)))

    def start(self, *command: str, **environ: str) -> Process:
        """Run one of our commands as a subprocess, its output in `directory`."""
        executable = str(Path(sys.executable).with_name(command[0]))
        log = self.directory / f"{command[0]}-{len(self.processes)}.log"
        process = Process([executable, *command[1:]], log, environ={**os.environ, **self.environ, **environ})
        process.launch()
        self.processes.append(process)
        return process

    def relay(self, **environ: str) -> Process:
        """A relay."""
        return self.start("streams", "relay", **environ)

    def worker(self, **environ: str) -> Process:
        """A worker on a web port of its own."""
        self.ports.append(_port())
        return self.start(
            "faust", "-A", "streams.app", "worker", "-l", "info", STREAMS_WEB__PORT=self.ports[-1], **environ
        )

    def health(self) -> list[Any]:
        """What each worker that answers says of itself."""
        return [answer for port in self.ports if (answer := _get(f"http://127.0.0.1:{port}/health/ready"))]

    def query(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run one statement on the database."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []


@pytest.fixture
async def world(kafka: KafkaBroker, database: str, name: str, tmp_path: Path) -> AsyncIterator[World]:
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
    )
    yield found
    for process in found.processes:
        process.kill()


def _get(url: str) -> Any:
    try:
        with urllib.request.urlopen(url, timeout=3) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return json.load(error)
    except OSError:
        return None


def _port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """`await eventually(condition, seconds)`: the condition's first true value, or a failure that shows the last one."""

    async def wait(condition: Callable[[], Any], seconds: float = 30.0, *, every: float = 0.05) -> Any:
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            value = condition()
            if value:
                return value
            if asyncio.get_running_loop().time() > deadline:
                pytest.fail(f"not within {seconds} s: the condition's last value was {value!r}")
            await asyncio.sleep(every)

    return wait
