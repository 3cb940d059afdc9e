"""The ground every measurement stands on: servers, filled databases, records on a topic.

It measures the rate of what drains them.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import orjson
import psutil
import psycopg
from confluent_kafka import Producer
from psycopg import sql
from rich.console import Console

from streams.dev.conversations import chat
from streams.dev.kafka import KafkaBroker
from streams.dev.ports import free_port
from streams.dev.postgres import PostgresServer
from streams.dev.process import Process
from streams.settings import Settings, load

PARTITIONS = 8
PATIENCE = 120.0
CHATS = 2000
TEXT_BYTES = 290  # with the other fields a payload has about 360
console = Console()


@asynccontextmanager
async def on_servers(rows: int) -> AsyncIterator[Bench]:
    """A bench of so many messages, on servers of its own in a folder that goes afterwards."""
    with tempfile.TemporaryDirectory(prefix="outbox-bench-", ignore_cleanup_errors=True) as folder:
        directory = Path(folder)
        directory.chmod(0o755)
        async with (
            PostgresServer(directory / "postgres") as postgres,
            KafkaBroker(directory / "kafka") as broker,
        ):
            yield Bench(postgres, broker, directory, rows)


@dataclass
class Bench:
    """The servers, and how many messages there are."""

    postgres: PostgresServer
    broker: KafkaBroker
    directory: Path
    rows: int

    def environ(self, database: str, group: str) -> dict[str, str]:
        """The environment of one contestant."""
        return {
            "DATABASE_URL": self.postgres.url_of(database),
            "BROKER_URL": self.broker.url,
            "STREAMS_WORKER__GROUP": group,
            "STREAMS_RELAY__NAME": database,
            "STREAMS_TOPIC__PARTITIONS": str(PARTITIONS),
            "STREAMS_WEB__PORT": str(free_port()),
            "BENCH_TOPIC": "chat-history",
            "BENCH_GROUP": group,
            "BENCH_DIRECTORY": str(self.directory),
        }

    def settings(self, database: str) -> Settings:
        """The settings of that environment."""
        return load(environ=self.environ(database, "bench"))

    @asynccontextmanager
    async def running(self, environ: dict[str, str], *command: str) -> AsyncIterator[Process]:
        """A contestant's process."""
        executable = str(Path(sys.executable).with_name(command[0]))
        log = self.directory / f"{environ['BENCH_GROUP']}-{command[0]}.log"
        process = Process(
            [executable, *command[1:]], log, environ={**os.environ, **environ}, cwd=Path.cwd()
        )
        process.launch()
        try:
            yield process
        except Exception:
            console.print(log.read_text()[-3000:], markup=False)
            raise
        finally:
            process.kill()
            await process.finish(10)


def payload(number: int, **fields: str) -> str:
    """The JSON of a message of about 360 bytes."""
    chat_number = number % CHATS
    message = {
        "user_id": chat_number,
        "conversation_id": f"c{chat_number}",
        "role": "user",
        "message": _text(number),
    }
    return orjson.dumps(message | fields).decode()


def _text(number: int) -> str:
    return _texts()[number % len(_texts())]


@cache
def _texts() -> list[str]:
    """Real messages, chained: one sentence again and again would compress as no chat does."""
    choose = random.Random(1)
    texts = []
    for _ in range(5000):
        text = ""
        while len(text.encode()) < TEXT_BYTES:
            text += " ".join(turn.message for turn in chat(choose)) + " "
        texts.append(text.encode()[:TEXT_BYTES].decode(errors="ignore"))
    return texts


def database(bench: Bench, name: str, template: str = "template0") -> None:
    """A fresh database."""
    with psycopg.connect(bench.postgres.url, autocommit=True) as connection:
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
            sql.Identifier(name), sql.Identifier(template)
        )
        connection.execute(create)


def settle(bench: Bench) -> None:
    """Have everything written that was prepared: it is not part of what is measured."""
    with psycopg.connect(bench.postgres.url, autocommit=True) as connection:
        connection.execute("CHECKPOINT")


def drop(bench: Bench, name: str) -> None:
    """What was measured is not in the way of what comes next."""
    with psycopg.connect(bench.postgres.url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        )


def fill(url: str, rows: int, topic: str = "chat-history", chats: int = CHATS) -> None:
    """Outbox rows of so many conversations, in transactions of 10,000."""
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        for first in range(0, rows, 10_000):
            with cursor.copy("COPY outbox (biz_type, topic, key, payload) FROM STDIN") as copy:
                for number in range(first, min(first + 10_000, rows)):
                    key = f"c{number % chats}"
                    text = payload(number, conversation_id=key)
                    copy.write_row(("chat_history_persist", topic, key, text))
            connection.commit()


def publish(bench: Bench, name: str, topic: str = "chat-history") -> None:
    """The outbox of this database onto the topic, once, for all contestants."""
    producer = Producer(
        {"bootstrap.servers": bench.broker.url, "partitioner": "murmur2_random", "linger.ms": 20}
    )
    with (
        psycopg.connect(bench.postgres.url_of(name)) as connection,
        connection.cursor("rows") as rows,
    ):
        rows.execute(
            "SELECT id, key, payload::text, (extract(epoch FROM created_at) * 1000)::bigint"
            " FROM outbox ORDER BY id"
        )
        for outbox_id, key, payload, created in rows:
            headers: list[tuple[str, str | bytes | None]] = [
                ("id", b"%d" % outbox_id),
                ("biz_type", b"chat_history_persist"),
                ("traceparent", None),
                ("resend_of", None),
            ]
            while True:
                try:
                    producer.produce(topic, payload, key, headers=headers, timestamp=created)
                    break
                except BufferError:
                    producer.poll(0.05)
    producer.flush()


@dataclass(frozen=True, slots=True)
class Drain:
    """How a topic or an outbox was drained: messages a second.

    Of each process most MB, and CPU microseconds a message.
    """

    rate: float
    memory: list[float]
    cpu: list[float]


async def drained(url: str, rows: int, watch: Sequence[Process] = ()) -> Drain:
    """From the first persisted message to the last."""
    processes = [psutil.Process(process.pid) for process in watch]
    memory, before = [0.0] * len(processes), [0.0] * len(processes)
    with psycopg.connect(url, autocommit=True) as connection:
        started, first, deadline = 0.0, 0, time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            [(done,)] = connection.execute(
                "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM outbox_applied"
            )
            memory = [
                max(most, each.memory_info().rss / 2**20)
                for most, each in zip(memory, processes, strict=True)
            ]
            if done and not started:
                started, first, before = time.monotonic(), done, [_cpu(each) for each in processes]
            if done >= rows:
                count = rows - first
                cpu = [
                    (_cpu(each) - spent) / count * 1e6
                    for each, spent in zip(processes, before, strict=True)
                ]
                return Drain(count / (time.monotonic() - started), memory, cpu)
            await asyncio.sleep(0.02)
    raise TimeoutError(f"only {done} of {rows} messages were persisted within {PATIENCE} seconds")


def _cpu(process: psutil.Process) -> float:
    spent = process.cpu_times()
    return spent.user + spent.system
