"""A Kafka that answers, and names no broker: one that was too busy to tell that it lives."""

from __future__ import annotations

import os
import socket
import socketserver
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from streams.broker.topics import Survey
from streams.dev.kafka import KafkaBroker
from streams.dev.ports import HOST
from streams.dev.process import until
from streams.settings import load

METADATA, FLEXIBLE = 3, 9  # Kafka's number of the request, and the version that packs it
LOOK = """
from pathlib import Path
from streams.broker.topics import Survey
from streams.errors import ServiceUnreachable
from streams.settings import load
survey = Survey(load())
print(*survey.look(["nobodys"]).brokers)
Path("fenced").touch()
try:
    print(survey.look(["nobodys"]))
except ServiceUnreachable as error:
    print(error)
"""


class Between(socketserver.ThreadingTCPServer):
    """Stands where the broker is said to be, until it is `fenced`: then no broker is named."""

    daemon_threads = True

    def __init__(self, broker: KafkaBroker, fenced: Path) -> None:
        super().__init__((HOST, 0), Link)
        self.broker_port, self.fenced = int(broker.url.rpartition(":")[2]), fenced
        self.port = int(self.server_address[1])


class Link(socketserver.BaseRequestHandler):
    """One connection to the broker."""

    server: Between

    def handle(self) -> None:
        """Pass requests on until the client is gone."""
        versions: dict[int, tuple[int, int]] = {}
        with socket.create_connection((HOST, self.server.broker_port)) as broker:
            answering = threading.Thread(target=self._answer, args=(broker, versions), daemon=True)
            answering.start()
            while request := frame(self.request):
                key, version, number = struct.unpack_from("!hhi", request)
                versions[number] = key, version
                broker.sendall(struct.pack("!i", len(request)) + request)

    def _answer(self, broker: socket.socket, versions: dict[int, tuple[int, int]]) -> None:
        while answer := frame(broker):
            key, version = versions.pop(struct.unpack_from("!i", answer)[0])
            if key == METADATA and version >= FLEXIBLE:
                answer = moved(answer, None if self.server.fenced.exists() else self.server.port)
            self.request.sendall(struct.pack("!i", len(answer)) + answer)


def frame(connection: socket.socket) -> bytes:
    """The next message without its length; nothing once the other side is gone."""
    try:
        if len(size := connection.recv(4, socket.MSG_WAITALL)) < 4:
            return b""
        return connection.recv(struct.unpack("!i", size)[0], socket.MSG_WAITALL)
    except OSError:
        return b""


def moved(answer: bytes, port: int | None) -> bytes:
    """This answer about metadata with its one broker at another port, or with none."""
    begin = 9  # behind the request's number, no tags, and the time of throttling
    assert answer[begin] == 2, "expected one broker"
    at = begin + 5  # the broker's number
    at += answer[at]  # its host
    if port is not None:
        return answer[:at] + struct.pack("!i", port) + answer[at + 4 :]
    end = at + 4
    end += max(1, answer[end])  # its rack
    assert answer[end] == 0, "expected no tags"
    return answer[:begin] + b"\x01" + answer[end + 1 :]


@pytest.fixture
def between(kafka: KafkaBroker, tmp_path: Path) -> Iterator[str]:
    """The address of the broker, which names no broker once there is a file `fenced`."""
    with Between(kafka, tmp_path / "fenced") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"{HOST}:{server.port}"
        server.shutdown()


def test_a_kafka_that_names_no_broker_is_an_outage_and_ends_nobody(
    between: str, tmp_path: Path
) -> None:
    """The client's library aborted the process: every worker of a broker that was fenced."""
    environ = {**os.environ, "BROKER_URL": between, "DATABASE_URL": "postgresql://127.0.0.1:1/d"}
    ended = subprocess.run(
        [sys.executable, "-c", LOOK],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (
        0,
        f"{between}\nKafka at {between} says that no broker of it lives\n",
    ), ended.stderr


async def test_looking_makes_no_topic_where_the_broker_would_make_it(tmp_path: Path) -> None:
    """One that vanished would be back with the broker's number of partitions, and nobody told."""
    making = {"auto.create.topics.enable": "true"}
    async with KafkaBroker(tmp_path, settings=making) as broker:
        environ = {"BROKER_URL": broker.url, "DATABASE_URL": "postgresql://127.0.0.1:1/d"}
        survey = Survey(load(environ=environ))
        for _ in range(2):
            assert survey.look(["vanished"]).topics == {}
        # What the broker makes it makes in its own time, but before what is asked for now.
        admin = AdminClient({"bootstrap.servers": broker.url, "log_level": 0})
        admin.create_topics([NewTopic("later", 1, 1)])["later"].result(30)
        assert await until(lambda: "later" in admin.list_topics().topics, 30)
        assert "vanished" not in admin.list_topics().topics
