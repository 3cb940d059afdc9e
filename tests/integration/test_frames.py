"""How many functions of ours lie on the two main ways: what a reader has to walk."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

import psycopg
import pytest
from confluent_kafka import Producer
from sqlalchemy.ext.asyncio import AsyncConnection

from streams import Batch, log
from streams.cli import main
from streams.relay.sink import publisher
from streams.worker.driver.dispatcher import Dispatcher
from streams.worker.driver.suspicion import Suspicion
from streams.worker.figures import WorkerFigures
from streams.worker.topic_agent import TopicAgent
from tests.conftest import World
from tests.fixtures.workbench import TOPIC, Note, Workbench

STREAMS = Path(__file__).parents[2] / "streams"
MOST_TO_HANDLER = 9
MOST_TO_PRODUCE = 7


@pytest.fixture
def bench(database: str) -> Iterator[Workbench]:
    with Workbench(database) as bench:
        yield bench


def awaited(task: asyncio.Task[Any]) -> Iterator[CodeType]:
    """What a waiting task is in the middle of, from the outside in."""
    waiting: Any = task.get_coro()
    while waiting is not None:
        code = getattr(waiting, "cr_code", None) or getattr(waiting, "gi_code", None)
        if code is not None:
            yield code
        waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "gi_yieldfrom", None)


def called() -> Iterator[CodeType]:
    """What the running task is in the middle of, from the outside in."""
    frame, codes = sys._getframe(1), []
    while frame.f_back is not None:
        frame = frame.f_back
        codes.append(frame.f_code)
    yield from reversed(codes)


def ours(codes: Iterator[CodeType]) -> list[str]:
    """The functions among them that are ours."""
    return [code.co_qualname for code in codes if Path(code.co_filename).is_relative_to(STREAMS)]


@pytest.mark.parametrize("suspect", [False, True])
def test_a_delivered_run_reaches_its_handler_through_few_functions(
    bench: Workbench, suspect: bool
) -> None:
    """From the lane that works it on; a partition's first run after its assignment is suspect."""
    walked: list[str] = []

    asked: list[bool] = []

    async def confirmed() -> None:
        asked.append(True)

    async def handle(messages: Batch[Note], db: AsyncConnection) -> None:
        assert asked  # whether it may work what its group was given
        [lane] = [task for task in asyncio.all_tasks() if task.get_name().startswith("lanes")]
        walked.extend([*ours(awaited(lane)), *ours(called())])

    async def deliver() -> None:
        app: Any = SimpleNamespace(monitor=SimpleNamespace(count=lambda *_: None))
        worker, nothing = bench.worker, SimpleNamespace()
        unused: Any = nothing
        figures = WorkerFigures(worker.database, "group", ["note"])
        entry: Any = SimpleNamespace(confirmed=confirmed)
        agent = TopicAgent(
            app, TOPIC, unused, worker, unused, worker.slots, worker.most, figures, entry
        )
        async with Dispatcher(
            agent._work, worker.slots, worker.most, lambda _: None, lambda _: None
        ) as lanes:
            lanes.submit(0, TOPIC, SimpleNamespace(value=run, ack=acked.set), len(run))
            await asyncio.wait_for(acked.wait(), 20)

    bench.handler, run, acked = handle, bench.send("a", "b"), asyncio.Event()
    if suspect:
        run.suspicion = Suspicion(TOPIC, 0, bench.worker.most, 4_000_000)
    bench.run(deliver())
    assert walked[0] == "Dispatcher._run"
    assert "work_run" in walked
    assert len(walked) <= MOST_TO_HANDLER, walked


def test_a_row_is_produced_a_few_functions_behind_the_command(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command runs in this process.

    It gets the signal that ends the command once a record is handed to Kafka.
    """
    walked: list[str] = []

    class Walked(Producer):
        def produce(self, *arguments: Any, **options: Any) -> None:
            walked.extend(ours(called()))
            os.kill(os.getpid(), signal.SIGTERM)
            super().produce(*arguments, **options)

    for name, value in world.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(world.directory)
    monkeypatch.setattr(publisher, "Producer", Walked)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    monkeypatch.setattr(gc, "set_threshold", lambda *_: None)
    monkeypatch.setattr(log, "setup", lambda *_, **__: None)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    enqueue = (
        "INSERT INTO outbox (biz_type, topic, key, payload)"
        " VALUES ('chat_history_persist', %s, 'c1', '{}')"
    )
    with psycopg.connect(world.url, autocommit=True) as connection:
        connection.execute(enqueue, [world.topic])
    try:
        with pytest.raises(SystemExit) as ended:
            main(["relay", "--mode", "poll"])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert ended.value.code == 0
    assert walked[0] == "main"
    assert walked[-1] == "Publisher.publish"
    assert len(walked) <= MOST_TO_PRODUCE, walked
