"""`make bench`: every contestant drains the same topic into a fresh database; prints ratios, writes nothing but the table."""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import psutil
import psycopg
from confluent_kafka import Producer
from psycopg import sql
from rich.console import Console
from rich.table import Table

from streams import deploy, kafka
from streams.dev.kafka import KafkaBroker
from streams.dev.ports import free_port
from streams.dev.postgres import PostgresServer
from streams.dev.process import Process
from streams.registry import configured
from streams.settings import Settings, load

PARTITIONS = 8
PATIENCE = 120.0
WRITERS = 4
TEXT = "a message of a conversation about nothing in particular, long enough to weigh what a chat message weighs. " * 3
console = Console()


@dataclass
class Bench:
    """The servers, and what was measured so far."""

    postgres: PostgresServer
    broker: KafkaBroker
    directory: Path
    rows: int
    figures: dict[str, float] = field(default_factory=dict)

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
        }

    def settings(self, database: str) -> Settings:
        """The settings of that environment."""
        return load(environ=self.environ(database, "bench"))

    @asynccontextmanager
    async def running(self, environ: dict[str, str], *command: str) -> AsyncIterator[Process]:
        """A contestant's process."""
        executable = str(Path(sys.executable).with_name(command[0]))
        log = self.directory / f"{environ['BENCH_GROUP']}-{command[0]}.log"
        process = Process([executable, *command[1:]], log, environ={**os.environ, **environ}, cwd=Path.cwd())
        process.launch()
        try:
            yield process
        except Exception:
            console.print(log.read_text()[-3000:], markup=False)
            raise
        finally:
            process.kill()
            await process.finish(10)


def database(bench: Bench, name: str, template: str = "template0") -> None:
    """A fresh database."""
    with psycopg.connect(bench.postgres.url, autocommit=True) as connection:
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        connection.execute(create)


def fill(url: str, rows: int, topic: str = "chat-history") -> None:
    """Outbox rows in transactions of 10,000."""
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        for first in range(0, rows, 10_000):
            with cursor.copy("COPY outbox (biz_type, topic, key, payload) FROM STDIN") as copy:
                for number in range(first, min(first + 10_000, rows)):
                    key = f"c{number % 2000}"
                    payload = {"user_id": number % 2000, "conversation_id": key, "role": "user", "message": TEXT}
                    copy.write_row(("chat_history_persist", topic, key, orjson.dumps(payload).decode()))
            connection.commit()


def publish(bench: Bench, name: str, topic: str = "chat-history") -> None:
    """The outbox of this database onto the topic, once, for all contestants."""
    producer = Producer({"bootstrap.servers": bench.broker.url, "partitioner": "murmur2_random", "linger.ms": 20})
    with psycopg.connect(bench.postgres.url_of(name)) as connection, connection.cursor("rows") as rows:
        rows.execute(
            "SELECT id, key, payload::text, (extract(epoch FROM created_at) * 1000)::bigint FROM outbox ORDER BY id"
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


async def drained(url: str, rows: int, watch: Sequence[Process] = ()) -> tuple[float, dict[int, float]]:
    """Messages a second from the first persisted to the last, and the largest memory of each process in MB."""
    memory = {process.pid: 0.0 for process in watch if process.pid}
    with psycopg.connect(url, autocommit=True) as connection:
        started, first, deadline = 0.0, 0, time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            [(done,)] = connection.execute("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM outbox_applied")
            if done and not started:
                started, first = time.monotonic(), done
            for pid in memory:
                memory[pid] = max(memory[pid], psutil.Process(pid).memory_info().rss / 2**20)
            if done >= rows:
                return (rows - first) / (time.monotonic() - started), memory
            await asyncio.sleep(0.02)
    raise TimeoutError(f"only {done} of {rows} messages were persisted within {PATIENCE} seconds")


async def contest(bench: Bench, name: str, *command: str) -> None:
    """One contestant drains the topic into a copy of the filled database."""
    database(bench, name, "filled")
    environ = bench.environ(name, name)
    async with bench.running(environ, *command) as process:
        rate, memory = await drained(environ["DATABASE_URL"], bench.rows, [process])
    bench.figures[name] = rate
    console.print(f"{name:>14} {rate:9,.0f} messages/s  {max(memory.values()):5.0f} MB")


async def pipeline(bench: Bench) -> None:
    """Rows wait in the outbox; relay and worker start; from the first persisted message to the last."""
    database(bench, "pipeline")
    environ = bench.environ("pipeline", "pipeline") | {"STREAMS_BROKER__TOPIC_PREFIX": "pipeline."}
    settings = load(environ=environ)
    list(deploy.migrate(settings, configured(settings)))
    fill(environ["DATABASE_URL"], bench.rows, topic="pipeline.chat-history")
    worker = bench.running(environ, "faust", "-A", "streams.app", "worker", "-l", "warn")
    async with worker as consumer, bench.running(environ, "streams", "relay") as relay:
        rate, memory = await drained(environ["DATABASE_URL"], bench.rows, [consumer, relay])
        bench.figures["pipeline"] = rate
        sizes = [memory[process.pid] for process in (consumer, relay) if process.pid]
        console.print(f"{'pipeline':>14} {rate:9,.0f} messages/s  worker {sizes[0]:.0f} MB, relay {sizes[1]:.0f} MB")
        await latency(bench, environ["DATABASE_URL"])


async def latency(bench: Bench, url: str, rate: int = 1000, seconds: int = 20) -> None:
    """Enqueue to persisted at a steady rate: commit of the outbox row to commit of its history row, by the server's clock.

    Several connections write, as a business does; the rate they really reached is what is printed.
    """
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(
            "CREATE TABLE seen (outbox_id bigint, at timestamptz);"
            "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " INSERT INTO seen VALUES (NEW.outbox_id, clock_timestamp()); RETURN NULL; END $$;"
            "CREATE CONSTRAINT TRIGGER note AFTER INSERT ON chat_histories DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION note()"
        )
        # What the drained rows left behind is not part of this measurement.
        await connection.execute("VACUUM ANALYZE")
        await connection.execute("CHECKPOINT")
        begin = time.monotonic()
        async with asyncio.TaskGroup() as writers:
            for first in range(WRITERS):
                writers.create_task(write(url, range(first, rate * seconds, WRITERS), begin, rate))
        reached = rate * seconds / (time.monotonic() - begin)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            cursor = await connection.execute(
                "SELECT extract(epoch FROM at - created_at AT TIME ZONE 'UTC') * 1000"
                " FROM seen JOIN outbox ON id = outbox_id ORDER BY outbox_id"
            )
            waits = [float(row[0]) for row in await cursor.fetchall()]
            if len(waits) >= rate * seconds:
                break
            await asyncio.sleep(0.2)
    cuts = statistics.quantiles(waits[rate:], n=100)
    bench.figures |= {"latency_p50_ms": cuts[49], "latency_p99_ms": cuts[98]}
    console.print(f"{'latency':>14} p50 {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms at {reached:,.0f} messages/s")


async def write(url: str, numbers: range, begin: float, rate: int) -> None:
    """These messages, each at its time, one transaction each, on one connection."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for number in numbers:
            if (ahead := begin + number / rate - time.monotonic()) > 0:
                await asyncio.sleep(ahead)
            key = f"c{number % 500}"
            payload = {"user_id": 1, "conversation_id": key, "role": "user", "message": TEXT}
            await connection.execute(
                "SELECT outbox_enqueue('chat_history_persist', %s, %s::json)", [key, orjson.dumps(payload).decode()]
            )


def report(bench: Bench) -> None:
    """The table of ratios, with the targets beside them."""
    figures = bench.figures
    table = Table(title=f"{bench.rows:,} messages, {PARTITIONS} partitions, {os.cpu_count()} cores")
    for column in ("what", "measured", "target"):
        table.add_column(column, justify="right" if column != "what" else "left")
    table.add_row("worker / stock take(1000)", f"{figures['ours'] / figures['stock']:.1f}", ">= 4")
    table.add_row("worker / bare loop", f"{figures['ours'] / figures['bare']:.2f}", ">= 0.7")
    table.add_row("worker / bare, 4 threads", f"{figures['ours'] / figures['bare_threads']:.2f}", "")
    table.add_row("pipeline, messages/s", f"{figures['pipeline']:,.0f}", ">= 30,000")
    table.add_row("latency p99, ms", f"{figures['latency_p99_ms']:.0f}", "< 100")
    console.print(table)


async def main(rows: int) -> None:
    """Everything, one after the other, on servers of its own."""
    with tempfile.TemporaryDirectory(prefix="outbox-bench-", ignore_cleanup_errors=True) as folder:
        directory = Path(folder)
        directory.chmod(0o755)
        async with PostgresServer(directory / "postgres") as postgres, KafkaBroker(directory / "kafka") as broker:
            bench = Bench(postgres, broker, directory, rows)
            database(bench, "filled")
            settings = load(environ=bench.environ("filled", "bench") | {"STREAMS_RELAY__MODE": "poll"})
            list(deploy.migrate(settings, configured(settings)))
            kafka.prepare_topics(settings, ["chat-history"])
            fill(settings.database_url, rows)
            publish(bench, "filled")
            await contest(bench, "ours", "faust", "-A", "streams.app", "worker", "-l", "warn")
            await contest(bench, "stock", "faust", "-A", "benchmarks.stock", "worker", "-l", "warn")
            await contest(bench, "bare", "python", "-m", "benchmarks.bare", "1")
            await contest(bench, "bare_threads", "python", "-m", "benchmarks.bare", "4")
            await pipeline(bench)
            report(bench)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    asyncio.run(main(parser.parse_args().rows))
