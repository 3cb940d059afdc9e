"""Faust's Kafka transport, whose consumer delivers runs of records as one message each."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, NodeNotReadyError
from faust.transport.drivers import aiokafka as driver
from mode import Service

from streams.worker.driver.consumer import RunConsumer
from streams.worker.driver.suspicion import Owner

FLUSH = 1.0  # seconds that anybody waits for what tables tell
CONTROLLER_SECONDS = 30.0  # in which a cluster has a controller again
PAUSE = 0.3


class TellingProducer(driver.Producer):
    """A producer for whom nobody waits long: it sends what tables tell, and wake-up calls.

    The database knows both, and each is compared with it. Faust flushes before it commits offsets
    and before it gives partitions up: under a flood of failures, or beside a broker that says
    nothing, workers committed nothing for half a minute and were stopped as stalled.
    """

    async def flush(self) -> None:
        """Wait for what is buffered, for a moment.

        Faust's own cannot be ended while messages are sent one after the other: its `wait_for`
        loses the cancellation (Python 3.11), and with it the timeout.
        """
        buffer: Any = self.buffer
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH):
                while buffer.size:
                    buffer.message_sent.clear()
                    await buffer.message_sent.wait()
                if self._producer is not None:
                    await self._producer.flush()

    async def on_stop(self) -> None:
        """Leave what is still buffered: without a producer it can only fail to be sent."""
        while not self.buffer.pending.empty():
            self.buffer.pending.get_nowait()
        await super().on_stop()


class RunTransport(driver.Transport):
    """Faust's Kafka transport with a consumer that delivers runs."""

    Consumer = RunConsumer
    Producer = TellingProducer

    async def _create_topic(
        self, owner: Service, client: AIOKafkaClient, *about: Any, **options: Any
    ) -> None:
        """As Faust does it, and again while the cluster knows no controller.

        So it is while its brokers are fenced: a worker that had just started ended.
        """
        deadline = time.monotonic() + CONTROLLER_SECONDS
        while True:
            try:
                return await super()._create_topic(owner, client, *about, **options)
            except KafkaError as error:
                if not error.retriable or owner.should_stop or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(PAUSE)

    async def _get_controller_node(
        self, owner: Service, client: AIOKafkaClient, *about: Any, **options: Any
    ) -> int | None:
        """The broker to ask; NodeNotReadyError while there is none."""
        node: int | None = await super()._get_controller_node(owner, client, *about, **options)
        if node == -1:
            raise NodeNotReadyError("the cluster knows no controller")
        return node


def run_transport(
    topics: Iterable[str],
    records: int,
    size: int,
    suspects: Owner | None = None,
    topic_ids: Mapping[str, str] = MappingProxyType({}),
) -> type[RunTransport]:
    """A transport class whose consumer delivers `topics` as runs.

    A run has at most `records` records and `size` bytes.
    """
    limits = {
        "run_topics": frozenset(topics),
        "run_records": records,
        "run_bytes": size,
        "suspects": suspects,
    }
    consumer = type("Consumer", (RunConsumer,), limits | {"topic_ids": topic_ids})
    return type("Transport", (RunTransport,), {"Consumer": consumer})
