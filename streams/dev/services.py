"""PostgreSQL, Kafka and, if asked, Kafka Connect of one `.dev` folder.

What dies is started again.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from streams.dev.connect import ConnectWorker
from streams.dev.kafka import KafkaBroker
from streams.dev.postgres import PostgresServer
from streams.dev.process import until
from streams.dev.screen import Screen
from streams.dev.supervised import delay
from streams.dev.workplace import Workplace
from streams.errors import StreamsError
from streams.groups import TaskGroup


@dataclass(frozen=True, slots=True)
class Services:
    """The servers; `environ` tells every process of the project where they are."""

    postgres: PostgresServer
    kafka: KafkaBroker
    connect: ConnectWorker | None = None

    @property
    def environ(self) -> Mapping[str, str]:
        ours = {"STREAMS_DATABASE__URL": self.postgres.url, "STREAMS_BROKER__URL": self.kafka.url}
        environ = {"DATABASE_URL": self.postgres.url, "BROKER_URL": self.kafka.url, **ours}
        if self.connect:
            environ |= {
                "STREAMS_CONNECT__URL": self.connect.url,
                "STREAMS_CONNECT__REGISTER": "true",
            }
        return environ

    def kill(self) -> None:
        """End all of them now."""
        if self.connect:
            self.connect.kill()
        self.kafka.kill()
        self.postgres.kill()


def services(workplace: Workplace, screen: Screen, *, connect: bool = False) -> Services:
    """The servers of this folder, not started."""
    kafka = KafkaBroker(workplace.kafka, log=workplace.log("kafka"), report=screen.download)
    return Services(
        PostgresServer(workplace.postgres, log=workplace.log("postgres")),
        kafka,
        ConnectWorker(
            workplace.connect, kafka, log=workplace.log("connect"), report=screen.download
        )
        if connect
        else None,
    )


@asynccontextmanager
async def serving(
    these: Services, screen: Screen, changed: Callable[[], None]
) -> AsyncIterator[None]:
    """All answer inside the block, and again soon after one has died.

    Leaving it stops PostgreSQL last.
    """
    async with AsyncExitStack() as stack:
        stack.push_async_callback(these.postgres.stop)
        stack.push_async_callback(these.kafka.stop)
        async with TaskGroup() as starting:
            starting.create_task(these.postgres.start())
            starting.create_task(these.kafka.start())
        if these.connect:
            screen.busy("starting Kafka Connect")
            stack.push_async_callback(these.connect.stop)
            await these.connect.start()
        async with TaskGroup() as watching:
            watchers = [
                watching.create_task(_kept_running("postgresql", these.postgres, screen, changed)),
                watching.create_task(_kept_running("kafka", these.kafka, screen, changed)),
            ]
            if these.connect:
                watchers.append(
                    watching.create_task(_kept_running("connect", these.connect, screen, changed))
                )
            try:
                yield
            finally:
                for watcher in watchers:
                    watcher.cancel()


async def _kept_running(
    name: str,
    server: PostgresServer | KafkaBroker | ConnectWorker,
    screen: Screen,
    changed: Callable[[], None],
) -> None:
    while True:
        await until(lambda: server.pid is None, math.inf, pause=0.1)
        screen.line(f"{name} died, starts again (log: {server.log})")
        failure = 0
        while server.pid is None:
            try:
                await server.restart()
            except StreamsError as error:
                failure += 1
                screen.line(f"{error}; next try in {delay(failure):g} s")
                await asyncio.sleep(delay(failure))
        changed()
