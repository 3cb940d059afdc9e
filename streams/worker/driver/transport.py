"""Faust's Kafka transport, whose consumer delivers runs of records as one message each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from faust.transport.drivers import aiokafka as driver

from streams.worker.driver.consumer import RunConsumer
from streams.worker.driver.suspicion import Owner


class RunTransport(driver.Transport):
    """Faust's Kafka transport with a consumer that delivers runs."""

    Consumer = RunConsumer


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
