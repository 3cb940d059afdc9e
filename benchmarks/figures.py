"""`python -m benchmarks.figures`: what figures cost a worker, as shares of its runs' time.

All of it is in one process.

Runs of chat messages are persisted as a worker does it, on one connection at a time. Three things
are figures' own: the triggers on the states, seen by persisting runs with and without them in turn;
counting what a run decided; and telling, every five seconds. The share is what they take of a
second of persisting.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import orjson
import psycopg

from streams.database import migrate
from streams.dev.postgres import PostgresServer
from streams.events import batches
from streams.figures.counters import Counters
from streams.figures.process import BEAT_SECONDS, Vitals
from streams.registry import configured
from streams.settings import Settings, load
from streams.worker.delivery import Delivery
from streams.worker.driver.runs import Run
from streams.worker.figures import PartitionLag, WorkerFigures
from streams.worker.run.attempt import Outcome
from streams.worker.run.decode import milliseconds
from streams.worker.run.persister import Persister

BIZ_TYPE, RECORDS = "chat_history_persist", 1000
TOLD_TIMES = 50
TURN = 8  # runs with triggers, then as many without


class Record(NamedTuple):
    """One record as aiokafka hands it out."""

    partition: int
    offset: int
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes | None]]
    timestamp: int
    timestamp_type: int = 0

    @property
    def serialized_value_size(self) -> int:
        """As a fetch counts it."""
        return len(self.value)


async def measure(settings: Settings, rounds: int) -> dict[str, float]:
    """Milliseconds: a run with and without triggers, counting a run, telling once."""
    registry = configured(settings)
    persister = Persister(settings, registry)
    figures = WorkerFigures(persister.database, "bench", registry.agents)
    topic = registry.agents[BIZ_TYPE].event.topic
    times: dict[bool, list[float]] = {True: [], False: []}
    counting: list[float] = []
    with psycopg.connect(settings.database_url, autocommit=True) as business:
        for number in range(2 * rounds * TURN):
            triggers = number // TURN % 2 == 0
            if number % TURN == 0:
                how = "ENABLE" if triggers else "DISABLE"
                business.execute(f"ALTER TABLE outbox_state {how} TRIGGER USER".encode())
            run = Run(topic, 0, _records(business, topic, number))
            began = time.perf_counter()
            outcome = await persister.persist(run)
            spent = time.perf_counter() - began
            assert outcome is not None
            assert outcome.consumed == RECORDS
            if number % TURN >= 2:  # the first ones meet statements that have to be planned anew
                times[triggers].append(spent * 1000)
            counting.append(_counted(run, persister) * 1000)
    telling = []
    vitals = Vitals(kind="worker", name="bench", partitions={topic: list(range(8))})
    lags = [PartitionLag(topic, partition, "id", 10, 20, time.time()) for partition in range(8)]
    for _ in range(TOLD_TIMES):
        began = time.perf_counter()
        await figures._tell(vitals, lags)
        telling.append((time.perf_counter() - began) * 1000)
    await persister.database.close()
    return {
        "run": median(times[True]),
        "run without triggers": median(times[False]),
        "counting a run": median(counting),
        "telling once": median(telling),
    }


def _counted(run: Run, persister: Persister) -> float:
    """Seconds to count one run."""
    deliveries: list[Delivery] = persister.origin(run.topic).read(run.records)[0]
    counters, outcome = Counters(), Outcome()
    began = time.perf_counter()
    outcome.count_persisted(batches(deliveries), set())
    counters.count(outcome.tally, time.time())
    return time.perf_counter() - began


def _records(business: psycopg.Connection[Any], topic: str, number: int) -> list[Record]:
    payloads = [
        orjson.dumps(
            {
                "user_id": 1,
                "conversation_id": f"c{place % 100}",
                "role": "user",
                "message": "m" * 200,
            }
        ).decode()
        for place in range(RECORDS)
    ]
    rows = business.execute(
        "INSERT INTO outbox (biz_type, topic, key, payload)"
        " SELECT %s, %s, p::json->>'conversation_id', p::json FROM unnest(%s::text[]) AS p"
        " RETURNING id, key, payload::text, created_at",
        (BIZ_TYPE, topic, payloads),
    ).fetchall()
    return [
        Record(
            0,
            number * RECORDS + place,
            key.encode(),
            payload.encode(),
            [
                ("id", str(outbox_id).encode()),
                ("biz_type", BIZ_TYPE.encode()),
                ("traceparent", None),
                ("resend_of", None),
            ],
            milliseconds(created_at),
        )
        for place, (outbox_id, key, payload, created_at) in enumerate(rows)
    ]


async def main(rounds: int) -> None:
    """Start a server, measure, print."""
    with tempfile.TemporaryDirectory() as folder:
        async with PostgresServer(Path(folder) / "postgres") as server:
            settings = load(environ={"DATABASE_URL": server.url, "STREAMS_RELAY__MODE": "poll"})
            list(migrate.migrate(settings, configured(settings)))
            measured = await measure(settings, rounds)
    for name, value in measured.items():
        print(f"{name:24} {value:9.3f} ms")  # noqa: T201 - what a benchmark is for
    runs_a_second = 1000 / measured["run"]
    counting = measured["counting a run"] * runs_a_second / 1000
    telling = measured["telling once"] / 1000 / BEAT_SECONDS
    triggers = measured["run"] / measured["run without triggers"] - 1
    for name, share in (("counting", counting), ("telling", telling), ("triggers", triggers)):
        print(f"{name:24} {share:9.2%} of a worker's time")  # noqa: T201


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    asyncio.run(main(parser.parse_args().rounds))
