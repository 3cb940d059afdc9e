"""The Faust app of a worker, assembled from settings and discovered agents.

It has one Faust agent for each topic.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import faust
from faust.auth import SASLCredentials, SSLCredentials
from yarl import URL

from streams.registry import Registry
from streams.settings import RETRY_SUFFIX, Settings
from streams.worker.driver.transport import run_transport
from streams.worker.figures import WorkerFigures
from streams.worker.group_entry import GroupEntry
from streams.worker.retries.schedule import Schedule, Scheduler
from streams.worker.retries.tables import AsideTables
from streams.worker.run.persister import Persister
from streams.worker.topic_agent import TopicAgent

FETCH_BYTES = 384 * 1024
RAW: dict[str, Any] = {
    "key_type": bytes,
    "value_type": bytes,
    "key_serializer": "raw",
    "value_serializer": "raw",
}


class App(faust.App):
    """A Faust app whose settings are ours alone, and which writes no file.

    Faust lets dozens of environment variables with common names (WEB_BIND, APP_VERSION,
    PRODUCER_ACKS) win over what it was given; this one reads an empty environment.
    """

    def __init__(self, group: str, **options: Any) -> None:
        super().__init__(group, **options, env={})

    def _create_directories(self) -> None:
        """Make no folder: our tables live in memory.

        One would be needed for nothing, and cannot be made on a read-only disk.
        """


def assemble(
    settings: Settings,
    registry: Registry,
    persister: Persister,
    figures: WorkerFigures,
    entry: GroupEntry,
    topic_ids: Mapping[str, str] = MappingProxyType({}),
) -> faust.App:
    """A Faust app that persists every consumed topic; nothing is connected before it is started.

    `topic_ids` will be known then: offsets are committed with them.
    """
    worker = settings.worker
    app = App(worker.group, **_options(settings))
    urls = [URL(f"kafka://{server}") for server in settings.broker_url.split(",")]
    retries = {topic: topic + RETRY_SUFFIX for topic in registry.consumed}
    topics = [*retries, *retries.values()]
    transport = run_transport(
        topics, worker.run_records, worker.run_bytes, persister.suspects, topic_ids
    )
    app.transport = transport(urls, app)
    for topic, retry in retries.items():
        partitions = settings.topic_settings(topic).partitions
        tables, schedule = AsideTables(app, topic, partitions), Schedule()
        both = app.topic(topic, retry, partitions=partitions, **RAW)
        consume = TopicAgent(
            app,
            topic,
            tables,
            persister,
            schedule,
            persister.slots,
            worker.run_records,
            figures,
            entry,
        )
        app.agent(both, name=f"persist-{topic}")(consume)
        calls = app.topic(retry, partitions=partitions, **RAW)
        app.task(Scheduler(app, topic, calls, tables, persister, schedule).run)
    return app


def _options(settings: Settings) -> dict[str, Any]:
    worker, web = settings.worker, settings.web
    return {
        "broker": [f"kafka://{server}" for server in settings.broker_url.split(",")],
        "broker_credentials": credentials(settings),
        "broker_session_timeout": worker.session_timeout,
        "broker_heartbeat_interval": min(3.0, worker.session_timeout / 3),
        "broker_rebalance_timeout": max(30.0, worker.session_timeout),
        "broker_commit_interval": worker.commit_interval,
        "consumer_auto_offset_reset": "earliest",
        # Of each partition; a larger record comes alone (KIP-74). Compressed: in memory it is a
        # few times as much.
        "consumer_max_fetch_size": FETCH_BYTES,
        # What one fetch may bring stays compressed until it is asked for; records are many times as
        # large.
        "broker_max_poll_records": worker.run_records,
        # Runs, not messages: a few are enough to keep the lanes busy, and each may hold
        # worker.run_bytes.
        "stream_buffer_maxsize": 16,
        # Wait for nothing at shutdown: what is not acked is not committed and will be delivered
        # again.
        "stream_wait_empty": False,
        "store": "memory://",
        "table_standby_replicas": 0,
        "topic_replication_factor": settings.topic.replication_factor,
        "topic_partitions": settings.topic.partitions,
        "topic_disable_leader": True,
        "web_bind": web.host,
        "web_host": web.host,
        "web_port": web.port,
        "web_stats_enabled": True,
        "web_tables_enabled": web.faust_tables,
        "web_router_enabled": web.faust_tables,
        "debug": False,
    }


def credentials(settings: Settings) -> SASLCredentials | SSLCredentials | None:
    """How Faust logs in to Kafka.

    It is as `streams.broker.kafka.client` does for the relay and the command line.
    """
    broker = settings.broker
    context = (
        ssl.create_default_context(cafile=broker.ssl_cafile)
        if broker.security_protocol.endswith("SSL")
        else None
    )
    if broker.sasl_mechanism is None:
        return SSLCredentials(context) if context is not None else None
    return SASLCredentials(
        mechanism=broker.sasl_mechanism,
        username=broker.sasl_username,
        password=broker.sasl_password,
        ssl_context=context,
    )
