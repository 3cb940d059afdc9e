"""Where relays compete: one PostgreSQL, one broker, one Kafka Connect.

Every contest has names of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

from benchmarks.bench import Bench, database
from streams.broker import kafka
from streams.database import migrate
from streams.dev.connect import ConnectWorker
from streams.registry import configured
from streams.relay.debezium.rest import Connect
from streams.settings import load


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to publish: a mode, its settings, and how many relays share the work."""

    name: str
    mode: str
    environ: dict[str, str] = field(default_factory=dict)
    processes: int = 1


@dataclass
class Arena(Bench):
    """The servers, and how many contests there were."""

    connect: ConnectWorker = field(kw_only=True)
    contests: int = 0

    @asynccontextmanager
    async def world(self, contestant: Contestant) -> AsyncIterator[dict[str, str]]:
        """The environment of one contest: a migrated database and a topic.

        The database is gone after it.
        """
        self.contests += 1
        name = f"{contestant.mode}_{self.contests}"
        database(self, name)
        environ = self.environ(name, name) | contestant.environ
        environ |= {
            "STREAMS_RELAY__MODE": contestant.mode,
            "STREAMS_BROKER__TOPIC_PREFIX": f"{name}.",
        }
        environ["BENCH_TOPIC"] = f"{name}.chat-history"
        if contestant.mode == "debezium":
            environ |= {
                "STREAMS_CONNECT__URL": self.connect.url,
                "STREAMS_CONNECT__REGISTER": "true",
            }
        settings = load(environ=environ)
        registry = configured(settings)
        list(migrate.migrate(settings, registry))
        kafka.prepare_topics(settings, registry.topics)
        try:
            yield environ
        finally:
            if contestant.mode == "debezium":
                await Connect(self.connect.url, name).delete()
            await asyncio.to_thread(_drop, self.postgres.url, name)

    @asynccontextmanager
    async def publishing(
        self, contestant: Contestant, environ: dict[str, str]
    ) -> AsyncIterator[list[int | None]]:
        """Its relays run; gives the pids of whoever does the work."""
        async with AsyncExitStack() as stack:
            pids = []
            for number in range(contestant.processes):
                own = environ | {"BENCH_GROUP": f"{environ['BENCH_GROUP']}-{number}"}
                pids.append(
                    (await stack.enter_async_context(self.running(own, "streams", "relay"))).pid
                )
            yield [*pids, self.connect.pid] if contestant.mode == "debezium" else pids


def _drop(url: str, name: str) -> None:
    """Database and slot, once whoever read the slot has ended."""
    slots = "FROM pg_replication_slots WHERE database = %s"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            f"SELECT pg_terminate_backend(active_pid, 5000) {slots} AND active", [name]
        )
        connection.execute(f"SELECT pg_drop_replication_slot(slot_name) {slots}", [name])
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
        # The next contest does not pay for writing this one's pages.
        connection.execute("CHECKPOINT")
