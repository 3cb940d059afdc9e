"""Rows into Kafka through librdkafka: idempotent, without gaps or time limit, bounded in flight."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer

from streams.broker import kafka
from streams.errors import StreamsError
from streams.relay.sink.in_flight import Flight, InFlight
from streams.relay.sink.limits import RecordLimits
from streams.relay.sink.spans import publication
from streams.relay.source.rows import Row, Rows
from streams.settings import Settings

logger = logging.getLogger("streams.relay")

IN_FLIGHT_ROWS, IN_FLIGHT_BYTES = 20_000, 32_000_000
TICK_SECONDS = 0.005
BATCH_BYTES = 1_000_000
AWAY_SECONDS = 60.0  # between two lines about a broker that is away

MarkDead = Callable[[Row, str], Awaitable[None]]

# What the broker refuses because of the record itself; everything else may be healed by time.
REFUSALS = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD, KafkaError.INVALID_TIMESTAMP)


class DeliveryFailed(StreamsError):
    """The producer is of no more use; `refused` when the broker took exception to a record."""

    def __init__(self, reason: str, *, refused: bool) -> None:
        super().__init__(reason)
        self.refused = refused


class Publisher:
    """One producer; `confirmed` is the position up to which all rows are with the broker.

    `careful` sends one row at a time, so that a record the broker refuses is known by itself, until
    as many as may have been in flight with it are through. Raises DeliveryFailed when records were
    refused or lost: begin again, from the confirmed position, with a new one.
    """

    def __init__(
        self,
        settings: Settings,
        admission: RecordLimits,
        mark_dead: MarkDead,
        *,
        careful: bool = False,
    ) -> None:
        self._settings = settings
        self._admission = admission
        self._mark_dead = mark_dead
        self._careful = IN_FLIGHT_ROWS if careful else 0
        self._flights = InFlight()
        self._away = -AWAY_SECONDS

    async def __aenter__(self) -> Publisher:
        self._producer = Producer(self._configuration())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # What is left was never confirmed; without this the producer's end would wait for a broker
        # that is away.
        self._producer.purge()
        self._producer.poll(0)

    @property
    def confirmed(self) -> int | None:
        """The position up to which every row is with the broker or dead; None until the first."""
        return self._flights.position

    @property
    def delivered(self) -> int:
        """How many rows have arrived."""
        return self._flights.acknowledged

    @property
    def in_flight(self) -> int:
        """How many rows are on their way."""
        return self._flights.rows

    async def publish(self, rows: Rows) -> None:
        """Hand the rows to the producer, in order; waits while too much is in flight."""
        await self._room()
        flight = self._flights.start(len(rows.rows), rows.size, rows.position)
        flight.trace = publication(rows.rows)
        safe_payload, produce, acknowledged = (
            self._admission.safe_payload,
            self._producer.produce,
            flight.acknowledged,
        )
        for row in rows.rows:
            topic, key, value, timestamp, headers = row
            if timestamp is None or self._careful or len(value) > safe_payload.get(topic, -1):
                await self._publish_one(row, flight)
                continue
            try:
                produce(
                    topic,
                    value,
                    key,
                    on_delivery=acknowledged,
                    timestamp=timestamp,
                    headers=headers,
                )
            except (KafkaException, BufferError):
                # Not handed over, perhaps for what only librdkafka counts: then this row is looked
                # at.
                await self._publish_one(row, flight)
        self.poll()

    def poll(self) -> None:
        """Take in what the broker answered."""
        failure: KafkaError | None = None
        try:
            self._producer.poll(0)
        except KafkaException as error:
            # The producer is dead; what it died of comes with the records, right after.
            failure = error.args[0]
            self._producer.poll(0.2)
        failure = self._flights.failure or failure
        if failure is not None:
            raise DeliveryFailed(failure.str(), refused=failure.code() in REFUSALS)

    async def flush(self, seconds: float) -> bool:
        """Whether all that was handed over arrived within the seconds."""
        deadline = time.monotonic() + seconds
        while len(self._producer) and time.monotonic() < deadline:
            self.poll()
            await asyncio.sleep(TICK_SECONDS)
        self.poll()
        return not len(self._producer)

    async def _publish_one(self, row: Row, flight: Flight) -> None:
        """A row that has to be looked at: dead if no record can carry it."""
        reason = await self._admission.fault(row)
        if reason is None:
            reason = await self._produce_one(row, flight)
        if reason is not None:
            await self._mark_dead(row, reason)
            if flight.trace is not None:
                flight.trace.mark_dead(row)
            flight.acknowledged(None, None)

    async def _produce_one(self, row: Row, flight: Flight) -> str | None:
        try:
            await self._hand_over(row, flight)
        except KafkaException as error:
            if error.args[0].code() not in REFUSALS:
                # A producer that is dead says of which record it died when it is asked.
                self.poll()
                raise
            return kafka.reason(error)
        if self._careful:
            self._careful -= 1
            await self._landing(row)
        return None

    async def _hand_over(self, row: Row, flight: Flight) -> None:
        """Hand a row over to librdkafka, waiting while it has no room.

        It counts headers and its own structures too.
        """
        while True:
            try:
                self._producer.produce(
                    row.topic,
                    row.value,
                    row.key,
                    on_delivery=flight.acknowledged,
                    timestamp=row.timestamp or 0,
                    headers=row.headers,
                )
            except BufferError:
                self.poll()
                await asyncio.sleep(TICK_SECONDS)
            else:
                return

    async def _landing(self, row: Row) -> None:
        """Wait until the broker has this row.

        A refusal is remembered, for the producer that comes after this one.
        """
        try:
            while len(self._producer):
                self.poll()
                await asyncio.sleep(0.001)
            self.poll()
        except DeliveryFailed as error:
            if error.refused:
                self._admission.refuse(row, str(error))
            raise

    async def _room(self) -> None:
        flights = self._flights
        while flights.rows >= IN_FLIGHT_ROWS or flights.size >= IN_FLIGHT_BYTES:
            self.poll()
            await asyncio.sleep(TICK_SECONDS)

    def _configuration(self) -> dict[str, Any]:
        return kafka.client(self._settings) | {
            "error_cb": self._on_error,
            "acks": "all",
            "enable.idempotence": True,
            # A record that fails ends the producer before a later one overtakes it.
            "enable.gapless.guarantee": True,
            "message.timeout.ms": 0,
            "partitioner": "murmur2_random",
            "compression.type": "lz4",
            "linger.ms": 0 if self._careful else 5,
            "batch.size": min(BATCH_BYTES, self._admission.smallest),
            "message.max.bytes": self._admission.largest,
            # Never reached: what is in flight is counted here, in rows that were not confirmed.
            "queue.buffering.max.messages": 10 * IN_FLIGHT_ROWS,
            "queue.buffering.max.kbytes": 4 * IN_FLIGHT_BYTES // 1000,
        }

    def _on_error(self, error: KafkaError) -> None:
        # librdkafka says it with every try to connect.
        if (
            error.code() == KafkaError._ALL_BROKERS_DOWN
            and time.monotonic() - self._away >= AWAY_SECONDS
        ):
            self._away = time.monotonic()
            logger.warning(
                "broker away", extra={"in_flight": self._flights.rows, "error": error.str()}
            )
