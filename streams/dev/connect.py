"""A Kafka Connect worker of our own with the real Debezium connector, on one loopback port."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import urllib.request
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType

from streams.dev.downloads import Report, resolve_in_thread
from streams.dev.kafka import JAVA_OPTIONS, KafkaBroker
from streams.dev.ports import HOST, claim, is_free
from streams.dev.process import Process, failure, until
from streams.dev.wheels import java_home

CONNECT = (
    "org.apache.kafka:connect-runtime:4.1.0+io.debezium:debezium-connector-postgres:3.3.1.Final"
    "+org.slf4j:slf4j-simple:1.7.36"
)
START_SECONDS = 120.0
STOP_SECONDS = 15.0
LOGGING = (
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
)
# Heartbeats of a group that has one member.
SESSION = "10000"


class ConnectWorker(AbstractAsyncContextManager["ConnectWorker"]):
    """A Connect worker in distributed mode: it can be killed and started again.

    Its connectors and offsets are in topics. Without `port` it takes a free one and remembers it in
    its folder. The broker runs when it starts; `report` hears of the download that the first start
    on a machine needs.
    """

    def __init__(
        self,
        directory: Path,
        broker: KafkaBroker,
        *,
        port: int | None = None,
        log: Path | None = None,
        report: Report | None = None,
    ) -> None:
        self.directory = directory.absolute()
        self.port = port
        self.log = log or self.directory / "connect.log"
        self._broker = broker
        self._report = report
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """Its REST interface."""
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The pid of the Java process while it runs."""
        return self._process.pid if self._process else None

    async def __aenter__(self) -> ConnectWorker:
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
        """Returns when it takes connectors.

        ServiceUnreachable or UsageError in one line otherwise.
        """
        java = java_home() / "bin" / "java"
        jars = await resolve_in_thread(CONNECT, self._report)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.port = claim("Kafka Connect", self.port, self.directory / "port")
        command = (
            java,
            *JAVA_OPTIONS,
            *LOGGING,
            "org.apache.kafka.connect.cli.ConnectDistributed",
            self._properties(),
        )
        self._process = Process(
            command, self.log, environ={**os.environ, "CLASSPATH": os.pathsep.join(map(str, jars))}
        )
        self._process.launch()
        try:
            await self._ready(self._process)
        except BaseException:  # interrupted too: no process is left behind
            self._process.kill()
            raise

    async def stop(self) -> None:
        """Commit offsets and end in order."""
        if self._process:
            await self._process.stop(signal.SIGTERM, grace=STOP_SECONDS)

    def kill(self) -> None:
        """SIGKILL, as if the machine had lost power."""
        if self._process:
            self._process.kill()

    async def restart(self) -> None:
        """Stop if it runs, then start on the same port with the same connectors."""
        await self.stop()
        port = self.port
        await until(lambda: port is None or is_free(port), 5.0)
        await self.start()

    def _properties(self) -> Path:
        topics = {
            f"{kind}.storage.topic": f"connect-{kind}s" for kind in ("config", "offset", "status")
        }
        settings = {
            "bootstrap.servers": self._broker.url,
            "listeners": self.url,
            "group.id": "connect",
            "session.timeout.ms": SESSION,
            "heartbeat.interval.ms": "1000",
            "scheduled.rebalance.max.delay.ms": "0",
            "key.converter": "org.apache.kafka.connect.json.JsonConverter",
            "value.converter": "org.apache.kafka.connect.json.JsonConverter",
            **topics,
            **{
                f"{kind}.storage.replication.factor": "1" for kind in ("config", "offset", "status")
            },
            **{f"{kind}.storage.partitions": "1" for kind in ("offset", "status")},
            "offset.flush.interval.ms": "1000",
            # A task that is not given the time to end in order keeps its slot.
            "offset.flush.timeout.ms": "2000",
            "task.shutdown.graceful.timeout.ms": "30000",
            "plugin.discovery": "only_scan",
        }
        file = self.directory / "worker.properties"
        file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        return file

    async def _ready(self, process: Process) -> None:
        deadline = time.monotonic() + START_SECONDS
        while process.running and time.monotonic() < deadline:
            if await asyncio.to_thread(_answers, self.url):
                return
            await asyncio.sleep(0.1)
        raise failure("Kafka Connect", process, self.log)


def _answers(url: str) -> bool:
    """Whether the worker knows its connectors, which it reads from a topic first."""
    try:
        with urllib.request.urlopen(f"{url}/connectors", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
