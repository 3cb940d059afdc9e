"""One conversation of an envelope topic in two partitions: it is worked as one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from streams import Batch
from streams.worker.driver.runs import Run
from tests.fixtures.listed import Record
from tests.fixtures.workbench import TOPIC, Note, Workbench, save


@pytest.fixture
def bench(database: str) -> Iterator[Workbench]:
    with Workbench(database, envelopes=True) as workbench:
        yield workbench


def call(partition: int) -> Run:
    """A wake-up call for the conversation in this partition."""
    return Run(TOPIC, partition, [Record(partition, 0, b"k", b"", [], 0)])


def fates(bench: Workbench) -> list[tuple[Any, ...]]:
    return bench.query("SELECT partition, status, attempts FROM outbox_foreign ORDER BY outbox_id")


def test_two_wake_up_calls_at_once_let_nothing_past_a_message_that_waits(
    bench: Workbench,
) -> None:
    """Both read what was parked.

    The second waited for the rows, and took those that the first had parked again.
    """
    failing, began, goes_on = {"m0"}, asyncio.Event(), asyncio.Event()

    async def handle(messages: Batch[Note], db: AsyncConnection) -> None:
        if not began.is_set() and any(message.payload.note == "m1" for message in messages):
            began.set()
            await goes_on.wait()
        if failing & {message.payload.note for message in messages}:
            raise ValueError
        await save(messages, db)

    bench.handler = handle
    bench.persist(bench.send("m0", book="k", partition=1))
    bench.persist(bench.send("m1", "m2", "m3", book="k"))
    bench.query("UPDATE outbox_foreign SET status = 'discarded', open = false WHERE outbox_id = 1")
    failing = {"m2"}

    async def both() -> None:
        retry = bench.worker.retry
        first = asyncio.create_task(retry(call(0), TOPIC, ["k"]))
        await asyncio.wait_for(began.wait(), 20)
        second = asyncio.create_task(retry(call(1), TOPIC, ["k"]))
        # It has nothing to wait for.
        assert await asyncio.wait_for(second, 20) is not None
        goes_on.set()
        assert await asyncio.wait_for(asyncio.gather(first, second), 30)

    bench.run(both())
    assert bench.saved() == ["m1"]
    assert fates(bench) == [
        (1, "discarded", 1),
        (0, "consumed", 0),
        (0, "retrying", 1),
        (0, "parked", 0),
    ]


def test_a_wake_up_call_leaves_what_is_in_another_partition_to_its_owner(
    bench: Workbench,
) -> None:
    failing = {"m0"}

    async def handle(messages: Batch[Note], db: AsyncConnection) -> None:
        if failing & {message.payload.note for message in messages}:
            raise ValueError
        await save(messages, db)

    bench.handler = handle
    bench.persist(bench.send("m0", book="k", partition=1))
    bench.persist(bench.send("m1", book="k"))
    bench.persist(bench.send("m2", book="k", partition=1))
    bench.query("UPDATE outbox_foreign SET next_retry_at = now() WHERE outbox_id = 1")
    failing = set()
    # Nobody moves while its turn is another partition's; who is next is then told.
    saved: list[list[str]] = []
    nexts: list[int] = []
    for partition in (0, 1, 1, 0, 0, 1):
        assert bench.run(bench.worker.retry(call(partition), TOPIC, ["k"])) is not None
        saved.append(bench.saved())
        nexts += [head.partition for head in bench.run(bench.worker.heads(TOPIC, ["k"]))]
    assert saved == [
        [],
        ["m0"],
        ["m0"],
        ["m0", "m1"],
        ["m0", "m1"],
        ["m0", "m1", "m2"],
    ]
    assert nexts == [1, 0, 0, 1, 1]
