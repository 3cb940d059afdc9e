"""PostgreSQL and Kafka of one `.dev` folder, started together and started again when one dies."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from streams.dev.kafka import KafkaBroker
from streams.dev.postgres import PostgresServer
from streams.dev.process import until
from streams.dev.screen import Screen
from streams.dev.supervised import delay
from streams.dev.workplace import Workplace
from streams.errors import StreamsError


@dataclass(frozen=True, slots=True)
class Services:
    """The two servers; `environ` tells every process of the project where they are."""

    postgres: PostgresServer
    kafka: KafkaBroker

    @property
    def environ(self) -> Mapping[str, str]:
        return {"DATABASE_URL": self.postgres.url, "BROKER_URL": self.kafka.url}

    def kill(self) -> None:
        """End both now."""
        self.kafka.kill()
        self.postgres.kill()


def services(workplace: Workplace, screen: Screen) -> Services:
    """The servers of this folder, not started."""
    return Services(
        PostgresServer(workplace.postgres, log=workplace.log("postgres")),
        KafkaBroker(workplace.kafka, log=workplace.log("kafka"), report=screen.download),
    )


@asynccontextmanager
async def serving(these: Services, screen: Screen, changed: Callable[[], None]) -> AsyncIterator[None]:
    """Both answer inside the block, and again soon after one has died; leaving it stops Kafka, then PostgreSQL."""
    async with AsyncExitStack() as stack:
        stack.push_async_callback(these.postgres.stop)
        stack.push_async_callback(these.kafka.stop)
        async with asyncio.TaskGroup() as starting:
            starting.create_task(these.postgres.start())
            starting.create_task(these.kafka.start())
        async with asyncio.TaskGroup() as watching:
            watchers = [
                watching.create_task(_kept_running("postgresql", these.postgres, screen, changed)),
                watching.create_task(_kept_running("kafka", these.kafka, screen, changed)),
            ]
            try:
                yield
            finally:
                for watcher in watchers:
                    watcher.cancel()


async def _kept_running(
    name: str, server: PostgresServer | KafkaBroker, screen: Screen, changed: Callable[[], None]
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
