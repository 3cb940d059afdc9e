"""The driver between two positionings.

What was fetched and not delivered comes again, changelogs too.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.errors import KafkaError, NotLeaderForPartitionError
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.offset import OffsetResetStrategy
from aiokafka.structs import TopicPartition
from faust.transport.drivers import aiokafka as driver
from faust.transport.producer import ProducerBuffer
from faust.types import TP
from faust.types.tuples import FutureMessage

from streams.worker.driver import transport
from streams.worker.driver.consumer import RunConsumer
from streams.worker.driver.runs import Run
from streams.worker.driver.transport import run_transport

SOURCE, FRESH, CHANGELOG = TP("source", 0), TP("source", 1), TP("changelog", 0)
COMMITTED = 5
ENDS = {SOURCE: COMMITTED + 1, FRESH: 1, CHANGELOG: 1}


class Faust:
    """What of Faust's consumer lies below the driver: positions, and records from there on."""

    def __init__(self) -> None:
        self.positions = {SOURCE: COMMITTED, FRESH: 0, CHANGELOG: 0}
        self.silent: set[TP] = set()  # partitions that give nothing
        self.holes: dict[TP, int] = {}  # where a fetch of a partition begins, whatever its position
        self.meanwhile: Any = None  # called once, while Faust seeks or fetches
        self._fetch_max_wait_ms = 1500
        self.patience: list[float] = []  # seconds that each fetch may wait
        self.data = asyncio.Event()  # a fetch waits for it
        self.data.set()
        self.asked = asyncio.Event()

    async def waits(self) -> None:
        self.asked.set()
        await self.data.wait()

    async def disturb(self) -> None:
        if self.meanwhile is not None:
            act, self.meanwhile = self.meanwhile, None
            await act()

    async def fetch(self, _: Any, seconds: float) -> dict[TP, list[Any]]:
        self.patience.append(seconds)
        await self.waits()
        fetched: dict[TP, list[Any]] = {
            tp: [SimpleNamespace(offset=self.holes.get(tp, at), serialized_value_size=1)]
            for tp, at in self.positions.items()
            if at < ENDS[tp] and tp not in self.silent
        }
        self.positions |= {tp: ENDS[tp] for tp in fetched}
        await self.disturb()
        return fetched


@pytest.fixture
def faust() -> Faust:
    return Faust()


@pytest.fixture
def consumer(faust: Faust, monkeypatch: pytest.MonkeyPatch) -> RunConsumer:
    """The driver on that; one partition has a committed offset, the other has none yet."""

    async def perform_seek(driver: Any) -> None:
        driver._sought = {SOURCE: COMMITTED, FRESH: None}
        faust.positions[SOURCE] = COMMITTED
        await faust.disturb()

    async def seek(tp: TP, offset: int) -> None:
        faust.positions[tp] = offset

    async def seek_wait(_: Any, partitions: dict[TP, int]) -> None:
        faust.positions |= partitions

    async def earliest(*tps: TP) -> dict[TP, int]:
        return dict.fromkeys(tps, 0)

    monkeypatch.setattr(driver.Consumer, "__init__", lambda *_, **__: None)
    monkeypatch.setattr(driver.Consumer, "perform_seek", perform_seek)

    async def fetch(_: Any, *how: Any) -> dict[TP, list[Any]]:
        # In a thread of its own, which nobody cancels.
        return await asyncio.shield(asyncio.ensure_future(faust.fetch(*how)))

    monkeypatch.setattr(driver.Consumer, "seek_wait", seek_wait)
    monkeypatch.setattr(driver.Consumer, "_getmany", fetch)
    found: Any = run_transport(["source"], 10, 1000).Consumer()
    parts: dict[str, Any] = {
        "app": SimpleNamespace(
            monitor=SimpleNamespace(track_tp_end_offset=lambda *_: None), client_only=False
        ),
        "flow_active": True,
        "can_resume_flow": asyncio.Event(),
        "suspend_flow": asyncio.Event(),
        "_buffered_partitions": set(),
        "_stopped": asyncio.Event(),
        "_crashed": asyncio.Event(),
        "_thread": SimpleNamespace(_consumer=SimpleNamespace(_fetcher=faust)),
        "assignment": lambda: {SOURCE, FRESH, CHANGELOG},
        "end_of": lambda _: 1,
        "position_of": faust.positions.get,
        "_acked": defaultdict(list),
        "earliest_offsets": earliest,
        "_seek": seek,
        "not_waiting_next_records": asyncio.Event(),
        "_get_active_partitions": lambda: {SOURCE, FRESH, CHANGELOG},
        "_to_message": lambda _, record: SimpleNamespace(
            offset=record.offset, key=None, value=None
        ),
    }
    for name, value in parts.items():
        monkeypatch.setattr(found, name, value, raising=False)
    return found  # type: ignore[no-any-return]


async def delivered(consumer: RunConsumer) -> set[TP]:
    return {tp async for tp, _ in consumer.getmany(0.1)}


async def test_records_that_a_seek_outran_are_fetched_again_changelogs_too(
    consumer: RunConsumer, faust: Faust
) -> None:
    await consumer.seek_wait({CHANGELOG: 0})
    faust.meanwhile = lambda: consumer.perform_seek()
    assert await delivered(consumer) == set()
    assert await delivered(consumer) == {SOURCE, FRESH, CHANGELOG}
    assert await delivered(consumer) == set()


async def test_records_that_an_abandoned_fetch_takes_after_a_seek_are_fetched_again(
    consumer: RunConsumer, faust: Faust
) -> None:
    """A rebalance cancels who waits for a fetch.

    The fetch then takes what it finds where the partitions were positioned since.
    """
    faust.data.clear()
    waiting = asyncio.create_task(delivered(consumer))
    await faust.asked.wait()
    waiting.cancel()
    await asyncio.wait([waiting])
    await consumer.seek_wait({CHANGELOG: 0})
    await consumer.perform_seek()
    faust.data.set()
    assert await delivered(consumer) == {SOURCE, FRESH, CHANGELOG}


async def test_records_dropped_while_an_abandoned_fetch_ends_are_fetched_again(
    consumer: RunConsumer, faust: Faust
) -> None:
    await consumer.perform_seek()
    faust.positions |= ENDS
    faust.data.clear()
    waiting = asyncio.create_task(delivered(consumer))
    await faust.asked.wait()
    waiting.cancel()
    await asyncio.wait([waiting])
    again = asyncio.create_task(delivered(consumer))
    await asyncio.sleep(0)
    consumer.progress[SOURCE].ledger.open(Run("source", 0, [SimpleNamespace(offset=COMMITTED)]))
    consumer.resume_flow()
    faust.data.set()
    assert SOURCE in await again


async def test_a_message_that_is_not_handed_over_is_fetched_again(
    consumer: RunConsumer, faust: Faust
) -> None:
    """The flow stops while Faust has a message in its hands: it drops that one."""
    await consumer.seek_wait({CHANGELOG: 0})
    await consumer.perform_seek()
    handing = consumer.getmany(0.1)
    seen: list[TP] = []
    async for tp, _ in handing:
        seen.append(tp)
        if tp == CHANGELOG:
            consumer.flow_active = False
    assert CHANGELOG in seen
    consumer.flow_active = True
    assert await delivered(consumer) == {SOURCE, FRESH, CHANGELOG}


async def test_a_rebalance_while_a_silent_partition_is_positioned_ends_no_worker(
    consumer: RunConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next partition was looked up among those that had just been taken away."""
    sought: list[TP] = []

    async def seek(tp: TP, _: int) -> None:
        sought.append(tp)
        consumer.progress.forget({SOURCE, FRESH})

    monkeypatch.setattr(consumer, "_seek", seek)
    monkeypatch.setattr(consumer, "_unread", SimpleNamespace(overdue=lambda *_, **__: True))
    consumer.progress[SOURCE].expected, consumer.progress[FRESH].expected = COMMITTED, 0
    await consumer._read_unread()
    assert len(sought) == 1


async def test_records_left_when_somebody_stops_listening_are_fetched_again(
    consumer: RunConsumer,
) -> None:
    await consumer.seek_wait({CHANGELOG: 0})
    await consumer.perform_seek()
    handing: Any = consumer.getmany(0.1)
    await anext(handing)
    await handing.aclose()
    assert await delivered(consumer) == {SOURCE, FRESH, CHANGELOG}


async def test_records_fetched_while_a_seek_ends_are_fetched_again(
    consumer: RunConsumer, faust: Faust
) -> None:
    """Fetched after Faust's part of it, dropped because of the driver's.

    It was positioned, and is not any more.
    """
    fetching: list[asyncio.Task[set[TP]]] = []
    fetched, ended = asyncio.Event(), asyncio.Event()

    async def fetch_before_the_end() -> None:
        async def hold() -> None:
            fetched.set()
            await ended.wait()

        faust.meanwhile = hold
        fetching.append(asyncio.create_task(delivered(consumer)))
        await fetched.wait()

    async def drop(*tps: TP) -> dict[TP, int]:
        ended.set()
        assert await fetching[0] == set()
        return dict.fromkeys(tps, 0)

    faust.meanwhile = fetch_before_the_end
    consumer.earliest_offsets = drop  # type: ignore[method-assign]
    await consumer.perform_seek()
    assert SOURCE in await delivered(consumer)


async def test_records_that_faust_clears_from_its_queues_before_it_goes_on_are_fetched_again(
    consumer: RunConsumer,
) -> None:
    """While tables recover the flow is on.

    A partition that is resumed may deliver before the last clearing.
    """
    await consumer.perform_seek()
    assert SOURCE in await delivered(consumer)
    consumer.resume_flow()
    assert SOURCE in await delivered(consumer)
    for run in [
        run for partition in consumer.progress.values() for run in partition.ledger.in_flight
    ]:
        run.taken = True
    consumer.resume_flow()
    assert await delivered(consumer) == set()


async def test_a_hole_is_read_again_before_it_is_believed(
    consumer: RunConsumer, faust: Faust
) -> None:
    await consumer.perform_seek()
    faust.holes[SOURCE] = COMMITTED + 3
    assert SOURCE not in await delivered(consumer)
    assert SOURCE in await delivered(consumer)


async def test_a_hole_seen_before_a_positioning_proves_nothing(
    consumer: RunConsumer, faust: Faust
) -> None:
    """The same fetch, dropped twice, would look like a hole that stays."""
    await consumer.perform_seek()
    faust.holes[SOURCE] = COMMITTED + 3
    assert SOURCE not in await delivered(consumer)
    await consumer.perform_seek()
    assert SOURCE not in await delivered(consumer)
    del faust.holes[SOURCE]
    assert SOURCE in await delivered(consumer)
    assert consumer.progress[SOURCE].ledger.in_flight[0].first == COMMITTED


async def test_records_that_were_lost_without_a_trace_are_read_again(
    consumer: RunConsumer, faust: Faust, monkeypatch: pytest.MonkeyPatch
) -> None:
    await consumer.perform_seek()
    faust.positions[SOURCE] = ENDS[SOURCE]
    monkeypatch.setattr(consumer, "end_of", ENDS.__getitem__)
    assert await delivered(consumer) == {FRESH, CHANGELOG}
    monkeypatch.setattr("streams.worker.driver.unread.UNREAD", 0.0)
    monkeypatch.setattr(consumer, "_next_look", 0.0)
    assert await delivered(consumer) == {SOURCE}


async def test_a_stretch_without_records_is_passed_over_when_it_was_read_twice(
    consumer: RunConsumer, faust: Faust, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transaction markers and what was aborted: aiokafka goes on behind them and gives nothing."""
    monkeypatch.setattr("streams.worker.driver.unread.UNREAD", 0.0)
    monkeypatch.setattr(consumer, "end_of", {**ENDS, SOURCE: COMMITTED + 2}.__getitem__)
    await consumer.perform_seek()
    ends, faust.silent = COMMITTED + 2, {SOURCE}
    faust.positions[SOURCE] = ends
    for expected in (COMMITTED, ends):
        monkeypatch.setattr(consumer, "_next_look", 0.0)
        await delivered(consumer)
        assert consumer.progress[SOURCE].expected == expected
        faust.positions[SOURCE] = ends
    assert consumer.progress[SOURCE].ledger.committable() == ends
    assert SOURCE in consumer._acked


async def test_a_stretch_that_kafka_deleted_is_asked_for_until_it_answers_and_not_committed(
    consumer: RunConsumer, faust: Faust, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.worker.driver.unread.UNREAD", 0.0)
    ends = COMMITTED + 2
    monkeypatch.setattr(consumer, "end_of", {**ENDS, SOURCE: ends}.__getitem__)
    await consumer.perform_seek()
    faust.silent = {SOURCE}
    answers: list[Any] = [KafkaError(), (COMMITTED, ends)]

    async def deleted(*_: Any) -> Any:
        if isinstance(answer := answers.pop(0), KafkaError):
            raise answer
        return answer

    monkeypatch.setattr(consumer, "_deleted", deleted)
    for expected in (COMMITTED, COMMITTED, ends):
        faust.positions[SOURCE] = ends
        monkeypatch.setattr(consumer, "_next_look", 0.0)
        await delivered(consumer)
        assert consumer.progress[SOURCE].expected == expected
    assert consumer.progress[SOURCE].deleted == (COMMITTED, ends)
    assert consumer.progress[SOURCE].ledger.committable() is None
    assert SOURCE not in consumer._acked


async def test_a_stretch_read_in_another_epoch_is_not_passed_over(
    consumer: RunConsumer, faust: Faust, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.worker.driver.unread.UNREAD", 0.0)
    monkeypatch.setattr(consumer, "end_of", {**ENDS, SOURCE: COMMITTED + 2}.__getitem__)
    await consumer.perform_seek()
    faust.silent = {SOURCE}
    for _ in range(2):
        faust.positions[SOURCE] = COMMITTED + 2
        monkeypatch.setattr(consumer, "_next_look", 0.0)
        await delivered(consumer)
        await consumer.perform_seek()
    assert consumer.progress[SOURCE].expected == COMMITTED


async def test_a_broker_waits_long_only_while_nothing_is_under_way(
    consumer: RunConsumer, faust: Faust
) -> None:
    """A request for empty partitions keeps those waiting that have records.

    aiokafka has one under way for each broker.
    """
    assert await delivered(consumer) == {SOURCE, FRESH, CHANGELOG}
    assert faust._fetch_max_wait_ms == 500, "nothing had come yet"
    assert await delivered(consumer) == set()
    assert faust._fetch_max_wait_ms == 20
    assert await delivered(consumer) == set()
    assert faust._fetch_max_wait_ms == 20, "runs are in flight"
    for partition in consumer.progress.values():
        partition.ledger.reset()
    consumer._buffered_partitions.add(SOURCE)
    assert await delivered(consumer) == set()
    assert faust._fetch_max_wait_ms == 20, "a partition is held back"
    consumer._buffered_partitions.clear()
    assert await delivered(consumer) == set()
    assert faust._fetch_max_wait_ms == 500


async def test_a_fetch_beside_a_held_back_partition_ends_soon(
    consumer: RunConsumer, faust: Faust
) -> None:
    """That partition may be free again long before the others have anything.

    If it is not, asking costs less and less.
    """
    await delivered(consumer)
    consumer._buffered_partitions.add(SOURCE)
    for _ in range(7):
        assert await delivered(consumer) == set()
    assert faust.patience[1:] == [0.003, 0.006, 0.012, 0.024, 0.048, 0.05, 0.05]
    await consumer.perform_seek()
    assert await delivered(consumer) == {SOURCE, FRESH}
    await delivered(consumer)
    assert faust.patience[-1] == 0.003


async def test_a_fetch_that_broke_off_is_read_on_and_the_rest_of_it_comes_again(
    consumer: RunConsumer, faust: Faust, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that does not answer meanwhile costs a second, not the worker."""
    await consumer.seek_wait({CHANGELOG: 0})
    await consumer.perform_seek()
    answers: list[Any] = [
        NotLeaderForPartitionError(),
        {SOURCE: [SimpleNamespace(offset=COMMITTED)]},
    ]

    async def break_off() -> None:
        if answers:
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    async def call_thread(*_: Any) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        answer[SOURCE][0].serialized_value_size = 1
        return answer

    monkeypatch.setattr("streams.worker.driver.consumer.AGAIN", 0.0)
    monkeypatch.setattr(consumer._thread, "call_thread", call_thread, raising=False)
    monkeypatch.setattr(consumer, "_read_offset", {}, raising=False)
    faust.meanwhile = break_off
    assert await delivered(consumer) == set()
    assert faust.positions == {SOURCE: COMMITTED, FRESH: 0, CHANGELOG: 0}
    faust.meanwhile = break_off
    assert await delivered(consumer) == {SOURCE}
    assert await delivered(consumer) == {FRESH, CHANGELOG}
    assert await delivered(consumer) == set()


async def test_a_fetch_that_is_broken_in_another_way_is_nobodys_to_mend(
    consumer: RunConsumer, faust: Faust, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def break_off() -> None:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    async def call_thread(*_: Any) -> Any:
        return {}

    monkeypatch.setattr(consumer._thread, "call_thread", call_thread, raising=False)
    faust.meanwhile = break_off
    with pytest.raises(UnicodeDecodeError):
        await delivered(consumer)


class Thread:
    """Faust's thread as far as it watches partitions that stand still.

    It asks aiokafka for their positions.
    """

    def __init__(self, tp: TopicPartition) -> None:
        self.state = SubscriptionState()
        self.state.subscribe({tp.topic})
        self.state.assign_from_subscribed([tp])
        self._consumer = SimpleNamespace(_subscription=self.state)
        self.verified: list[int] = []
        self.meanwhile: Any = lambda: None

    def verify_event_path(self, now: float, tp: TP) -> None:
        self.meanwhile()
        assert self.state.subscription is not None
        assert self.state.subscription.assignment is not None
        self.verified.append(self.state.subscription.assignment.state_value(tp).position)


async def test_a_partition_positioned_again_while_faust_looks_at_it_ends_no_worker() -> None:
    tp = TopicPartition("source", 0)
    consumer, thread = object.__new__(RunConsumer), Thread(tp)
    consumer._thread = thread  # type: ignore[assignment]
    state = thread.state.subscription.assignment.state_value(tp)
    state.seek(7)
    consumer.verify_event_path(0.0, TP("source", 0))
    assert thread.verified == [7]
    # As after a log that lost its end.
    state.await_reset(OffsetResetStrategy.EARLIEST)
    consumer.verify_event_path(0.0, TP("source", 0))
    state.seek(8)
    thread.meanwhile = lambda: state.await_reset(OffsetResetStrategy.EARLIEST)
    consumer.verify_event_path(0.0, TP("source", 0))
    thread.meanwhile = lambda: thread.state.assign_from_subscribed([])
    state.seek(9)
    consumer.verify_event_path(0.0, TP("source", 0))
    assert thread.verified == [7]


async def test_nobody_waits_long_until_what_tables_tell_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before each commit and each rebalance Faust does: with no end under a flood of failures.

    There is always more in the buffer, and something has just been sent.
    """

    class Flooded(ProducerBuffer):
        state, size = "running", 1

    async def flood() -> None:
        while True:
            buffer.message_sent.set()
            await asyncio.sleep(0)

    monkeypatch.setattr(transport, "FLUSH", 0.05)
    buffer, producer = Flooded(), object.__new__(run_transport([], 1, 1).Producer)
    producer.buffer, producer._producer = buffer, None
    tasks = {asyncio.create_task(producer.flush()), asyncio.create_task(flood())}
    done, flooding = await asyncio.wait(tasks, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    for task in flooding:
        task.cancel()
    assert len(done) == 1


async def test_what_a_flood_left_in_the_buffer_fails_no_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody waits long for it, so that some of it may be there when the worker ends."""

    async def on_stop(_: driver.Producer) -> None:
        stopped.set()

    stopped = asyncio.Event()
    monkeypatch.setattr(driver.Producer, "on_stop", on_stop)
    producer = object.__new__(run_transport([], 1, 1).Producer)
    producer.buffer = ProducerBuffer()
    app: Any = SimpleNamespace(conf=SimpleNamespace(producer_threaded=False))
    message: Any = SimpleNamespace()
    producer.buffer.app = app
    producer.buffer.put(FutureMessage(message))
    await producer.on_stop()
    await producer.buffer.on_stop()
    assert stopped.is_set()


async def test_a_topic_is_made_once_the_cluster_knows_a_controller_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While its brokers are fenced it names none, and a worker that had just started ended."""
    controllers, asked = iter([-1, -1, 1]), []

    class Owner:
        should_stop = False
        log = SimpleNamespace(info=lambda *_: None, debug=lambda *_: None)

        async def wait(self, sent: Any, **_: Any) -> Any:
            return SimpleNamespace(stopped=False, result=await sent)

    async def send(node: int, request: Any) -> Any:
        if type(request) is MetadataRequest:
            return SimpleNamespace(controller_id=next(controllers))
        asked.append(node)
        return SimpleNamespace(topic_errors=[("made", 0, None)])

    monkeypatch.setattr(transport, "PAUSE", 0.0)
    brokers = [SimpleNamespace(nodeId=1)]
    cluster = SimpleNamespace(topics=set, brokers=lambda: brokers)
    client: Any = SimpleNamespace(cluster=cluster, send=send)
    making: Any = object.__new__(run_transport([], 1, 1))
    making._topic_waiters, making.loop = {}, asyncio.get_running_loop()
    await asyncio.wait_for(making._create_topic(Owner(), client, "made", 1, 1), 5)
    assert asked == [1]
