"""A Kafka broker of our own: Apache Kafka in KRaft mode, one node, Java from a wheel."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import signal
import time
import uuid
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from streams.dev import learned
from streams.dev.downloads import Report, resolve_in_thread
from streams.dev.ports import HOST, claim, is_free
from streams.dev.process import Process, failure, until
from streams.dev.wheels import java_home

KAFKA = "org.apache.kafka:kafka_2.13:4.3.0+org.apache.logging.log4j:log4j-slf4j-impl:2.25.4"
START_SECONDS = 90.0
STOP_SECONDS = 20.0
LEARN_SECONDS = 120.0  # until a JVM that ends has written down what it learnt
FORMAT = "bootstrap.checkpoint"
# What a log folder has once a broker has run in it, and what one that ended in order leaves there.
RAN, CLEAN = "__cluster_metadata-0", ".kafka_cleanshutdown"
MAX_MESSAGE = 12 * 1024 * 1024

JAVA_OPTIONS = (
    "-Xmx512m",
    "-XX:-UsePerfData",
    "-Djava.awt.headless=true",
    "--enable-native-access=ALL-UNNAMED",
    "--sun-misc-unsafe-memory-access=allow",
)

# One node: nothing is replicated, nobody has to be waited for.
SETTINGS: Mapping[str, str] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "listener.security.protocol.map": "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "BROKER",
    "controller.listener.names": "CONTROLLER",
    "broker.heartbeat.interval.ms": "500",
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "8",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "8",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "message.max.bytes": str(MAX_MESSAGE),
    "replica.fetch.max.bytes": str(MAX_MESSAGE),
    "log.retention.hours": "720",
    "log.message.timestamp.after.max.ms": str(2**63 - 1),
    "log.cleaner.dedupe.buffer.size": str(16 * 1024 * 1024),
}

SESSION = "broker.session.timeout.ms"
# Without a sign of life for so long the only broker is fenced, and the cluster has none: on a busy
# machine two seconds are nothing.
PATIENT = {SESSION: "60000"}
# One that was killed may register again only when its session is over.
KILLED = {SESSION: "2000"}

LOG4J = """\
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{ISO8601} %p %c{1}: %m%n%throwable{short}
rootLogger.level = warn
rootLogger.appenderRef.console.ref = console
"""


class KafkaBroker(AbstractAsyncContextManager["KafkaBroker"]):
    """A broker whose data outlives it; restarted it keeps its port, so that clients find it again.

    Without `port` it takes a free one and remembers it in its folder. `settings` go over SETTINGS;
    `report` hears of the download that the first start on a machine needs. `learn` is a file to
    write down in what its JVM has learnt (`learned.py`), when it is stopped.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        log: Path | None = None,
        report: Report | None = None,
        learn: Path | None = None,
    ) -> None:
        self.directory = directory.absolute()
        self._learn = learn
        self.port = port
        self.log = log or self.directory / "kafka.log"
        self._data = self.directory / "data"
        self._settings = {**SETTINGS, **(settings or {})}
        self._report = report
        self._controller: int | None = None
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """The bootstrap server, `host:port`."""
        return f"{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The pid of the Java process while it runs."""
        return self._process.pid if self._process else None

    async def __aenter__(self) -> KafkaBroker:
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
        """Returns when clients can use it.

        ServiceUnreachable or UsageError in one line otherwise.
        """
        java_home()
        jars = await resolve_in_thread(KAFKA, self._report)
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "log4j2.properties").write_text(LOG4J)
        self.port = claim("Kafka", self.port, self.directory / "port")
        self._controller = claim(
            "Kafka's controller", self._controller, self.directory / "controller.port"
        )
        if not self._data.is_dir():
            await self._format(jars)
        kept = (f"-XX:AOTCacheOutput={self._learn}",) if self._learn else learned.options(jars)
        self._process = self._java(jars, kept, "kafka.Kafka", self._properties(self._data))
        self._process.launch()
        try:
            await self._ready(self._process)
        except BaseException:  # interrupted too: no process is left behind
            self._process.kill()
            raise

    async def stop(self) -> None:
        """Flush and end in order."""
        if self._process:
            grace = LEARN_SECONDS if self._learn else STOP_SECONDS
            await self._process.stop(signal.SIGTERM, grace=grace)

    def kill(self) -> None:
        """SIGKILL, as if the machine had lost power."""
        if self._process:
            self._process.kill()

    async def restart(self) -> None:
        """Stop if it runs, then start on the same port with the same data."""
        await self.stop()
        ports = [port for port in (self.port, self._controller) if port is not None]
        await until(lambda: all(map(is_free, ports)), 5.0)
        await self.start()

    async def _format(self, jars: list[Path]) -> None:
        # Built beside its place and then renamed: an interrupted format leaves nothing that looks
        # like a log folder.
        draft = self.directory / "data.new"
        shutil.rmtree(draft, ignore_errors=True)
        formatted = learned.format_of(jars)
        if formatted.is_file():
            draft.mkdir()
            shutil.copyfile(formatted, draft / FORMAT)
            ids = {"cluster.id": _drawn(), "directory.id": _drawn()}
            meta = {"version": "1", "node.id": self._settings["node.id"], **ids}
            (draft / "meta.properties").write_text(_lines(meta))
        else:
            await self._format_anew(jars, draft)
            learned.keep(draft / FORMAT, formatted)
        draft.rename(self._data)

    async def _format_anew(self, jars: list[Path], draft: Path) -> None:
        """As Kafka's own tool does it, in a JVM of a second of CPU.

        Of what it writes only the ids are of this cluster; the rest says which features this
        version of Kafka begins with.
        """
        process = self._java(
            jars,
            learned.options(jars),
            "kafka.tools.StorageTool",
            "format",
            f"--cluster-id={_drawn()}",
            "--config",
            self._properties(draft),
        )
        process.launch()
        try:
            if await process.finish(START_SECONDS) != 0:
                raise failure("Kafka", process, self.log)
        finally:
            process.kill()

    def _properties(self, data: Path) -> Path:
        broker, controller = f"BROKER://{self.url}", f"CONTROLLER://{HOST}:{self._controller}"
        killed = (data / RAN).is_dir() and not (data / CLEAN).is_file()
        settings = {
            **(KILLED if killed else PATIENT),
            **self._settings,
            "listeners": f"{broker},{controller}",
            "advertised.listeners": broker,
            "controller.quorum.voters": f"1@{HOST}:{self._controller}",
            "log.dirs": str(data),
        }
        file = self.directory / "server.properties"
        file.write_text(_lines(settings))
        return file

    def _java(self, jars: list[Path], kept: tuple[str, ...], *arguments: str | Path) -> Process:
        log4j = f"-Dlog4j2.configurationFile={self.directory / 'log4j2.properties'}"
        command = (java_home() / "bin" / "java", *JAVA_OPTIONS, *kept, log4j, *arguments)
        environ = {**os.environ, "CLASSPATH": os.pathsep.join(map(str, jars))}
        return Process(command, self.log, environ=environ)

    async def _ready(self, process: Process) -> None:
        deadline = time.monotonic() + START_SECONDS
        while process.running and time.monotonic() < deadline:
            # A socket in front: librdkafka is slow to try a refused connection again.
            if (
                self.port is not None
                and not is_free(self.port)
                and await asyncio.to_thread(_has_broker, self.url)
            ):
                return
            await asyncio.sleep(0.05)
        raise failure("Kafka", process, self.log)


def _drawn() -> str:
    """An id as Kafka writes them."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


def _lines(properties: Mapping[str, str]) -> str:
    return "".join(f"{name}={value}\n" for name, value in properties.items())


def _has_broker(url: str) -> bool:
    """Whether the cluster's metadata names a broker that takes work."""
    try:
        return bool(
            AdminClient({"bootstrap.servers": url, "log_level": 0}).list_topics(timeout=2).brokers
        )
    except KafkaException:
        return False
