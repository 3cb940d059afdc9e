"""Kafka as the settings describe it: how clients log in, which topics exist, and whether they are as `faust.yml` says.

Blocking calls; async callers run them in a thread.  Shared by the relay, the worker's start and the command line.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ClusterMetadata,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from streams.errors import ServiceUnreachable, UsageError
from streams.settings import RETRY_SUFFIX, Settings

logger = logging.getLogger(__name__)

# librdkafka's own lines are neither constant nor ours; errors reach us as errors.
_nobody = logging.Logger("librdkafka", level=logging.CRITICAL + 1)

TIMEOUT = 5.0
_NONE: Mapping[str, str] = MappingProxyType({})
CREATE_TIME = "CreateTime"
NEVER = str(2**63 - 1)
# What a record may need beside its payload: a key of 1024 bytes, the headers, the batch around it.
OVERHEAD = 8192


def client(settings: Settings, **options: Any) -> dict[str, Any]:
    """librdkafka configuration to reach the broker; `options` are added with `_` for `.`."""
    broker = settings.broker
    found: dict[str, Any] = {
        "bootstrap.servers": settings.broker_url,
        "client.id": "outbox-streams",
        "security.protocol": broker.security_protocol,
        "allow.auto.create.topics": False,
        "reconnect.backoff.max.ms": 1000,
        # An outage is reported once, by whoever notices it; librdkafka would write to stderr every second.
        "log_level": 0,
        "logger": _nobody,
        "error_cb": lambda error: None,
    }
    if broker.sasl_mechanism:
        found["sasl.mechanism"] = broker.sasl_mechanism
        found["sasl.username"] = broker.sasl_username
        found["sasl.password"] = broker.sasl_password
    if broker.ssl_cafile:
        found["ssl.ca.location"] = broker.ssl_cafile
    return found | {name.replace("_", "."): value for name, value in options.items()}


def headers(message: Message) -> dict[str, bytes | str | None]:
    """A record's headers; none where its names are not UTF-8, which the client cannot read."""
    try:
        return dict(message.headers() or ())
    except UnicodeDecodeError:
        return {}


def record_limit(settings: Settings) -> int:
    """The largest record that may have to travel: the largest payload, its key, its headers."""
    return settings.outbox.max_bytes + OVERHEAD


def prepare_topics(settings: Settings, names: Iterable[str], changelogs: Mapping[str, str] = _NONE) -> None:
    """Create the topics that are missing; ServiceUnreachable, or UsageError when one has another partition count.

    `changelogs` are compacted topics with as many partitions as the topic each of them names.
    """
    admin = AdminClient(client(settings))
    wanted = {name: name for name in names} | dict(changelogs)
    found = _metadata(settings, admin)
    for name in sorted(wanted.keys() & found.topics.keys()):
        _check_partitions(settings, name, wanted[name], len(found.topics[name].partitions))
    missing = sorted(wanted.keys() - found.topics.keys())
    if missing:
        _create(settings, admin, [_new_topic(settings, name, wanted[name], name in changelogs) for name in missing])
        found = _wait_for(settings, admin, missing)
    for name in missing:
        # Somebody else may have been faster.
        _check_partitions(settings, name, wanted[name], len(found.topics[name].partitions))


def check_partitions(settings: Settings, names: Iterable[str]) -> None:
    """Those of these topics that exist have as many partitions as the settings say; ServiceUnreachable or UsageError."""
    found = _metadata(settings, AdminClient(client(settings)))
    for name in sorted(set(names) & found.topics.keys()):
        _check_partitions(settings, name, name, len(found.topics[name].partitions))


def prepare_topic(settings: Settings, name: str, *, partitions: int, config: Mapping[str, str] = _NONE) -> None:
    """Create a topic that carries no messages of ours, if it is missing; ServiceUnreachable or UsageError."""
    admin = AdminClient(client(settings))
    if name not in _metadata(settings, admin).topics:
        factor = settings.topic.replication_factor
        _create(
            settings, admin, [NewTopic(name, num_partitions=partitions, replication_factor=factor, config=dict(config))]
        )


def make_topic(
    settings: Settings, name: str, *, partitions: int, replication_factor: int, retention_hours: int
) -> None:
    """Create a topic of messages as whoever registered it has said; ServiceUnreachable or UsageError; blocking."""
    config = _messages_config(settings) | {"retention.ms": str(retention_hours * 3_600_000)}
    new = NewTopic(name, num_partitions=partitions, replication_factor=replication_factor, config=config)
    _create(settings, AdminClient(client(settings)), [new])


def check_times(settings: Settings, names: Iterable[str]) -> None:
    """The broker leaves records of these topics their own times; ServiceUnreachable or UsageError."""
    kinds = _configured(settings, AdminClient(client(settings)), sorted(names), "message.timestamp.type")
    for name, kind in kinds.items():
        if kind != CREATE_TIME:
            raise UsageError(
                f"topic {name!r} has message.timestamp.type {kind}: expected {CREATE_TIME}, a record's time says whose it is"
                f" (kafka-configs.sh --bootstrap-server {settings.broker_url} --alter --topic {name}"
                f" --add-config message.timestamp.type={CREATE_TIME})"
            )


def topic_limits(settings: Settings, names: Iterable[str], *, patience: float = 0.0) -> dict[str, int]:
    """The largest record batch in bytes of each of these topics that exists; looks again for `patience` seconds."""
    admin = AdminClient(client(settings))
    wanted = set(names)
    deadline = time.monotonic() + patience
    while True:
        known = wanted & _metadata(settings, admin).topics.keys()
        if known == wanted or time.monotonic() >= deadline:
            break
        time.sleep(0.2)
    return _max_message_bytes(settings, admin, sorted(known))


def unreachable(settings: Settings, error: KafkaException) -> ServiceUnreachable:
    """A Kafka client's error as one line."""
    return ServiceUnreachable(f"Kafka at {settings.broker_url} cannot be reached: {reason(error)}")


def reason(error: KafkaException) -> str:
    """librdkafka's words for an error, without its decoration."""
    found = error.args[0] if error.args else error
    return str(found.str()) if isinstance(found, KafkaError) else str(found)


def _metadata(settings: Settings, admin: AdminClient) -> ClusterMetadata:
    try:
        # All topics: asking for one by name could create it.
        return admin.list_topics(timeout=TIMEOUT)
    except KafkaException as error:
        raise unreachable(settings, error) from None


def _create(settings: Settings, admin: AdminClient, topics: list[NewTopic]) -> None:
    futures = admin.create_topics(topics, operation_timeout=TIMEOUT)
    for wanted in topics:
        try:
            futures[wanted.topic].result(TIMEOUT + 5)
        except KafkaException as error:
            code = error.args[0].code()
            if code == KafkaError.TOPIC_ALREADY_EXISTS:
                continue
            if code in (KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN):
                raise unreachable(settings, error) from None
            raise UsageError(
                f"topic {wanted.topic!r} cannot be created with {wanted.num_partitions} partitions and replication factor"
                f" {wanted.replication_factor}: {reason(error)}"
            ) from None
        logger.info("topic created", extra={"topic": wanted.topic, "partitions": wanted.num_partitions})


def _new_topic(settings: Settings, name: str, like: str, compacted: bool) -> NewTopic:
    wanted = settings.topic_settings(like)
    config = _messages_config(settings)
    if compacted:
        config["cleanup.policy"] = "compact"
    else:
        config["retention.ms"] = str(wanted.retention_hours * 3_600_000)
    return NewTopic(name, num_partitions=wanted.partitions, replication_factor=wanted.replication_factor, config=config)


def _messages_config(settings: Settings) -> dict[str, str]:
    """What every topic of messages has."""
    return {
        "max.message.bytes": str(max(record_limit(settings), 1_048_588)),
        # A record's time is its outbox row's: it says whose the record is.
        "message.timestamp.type": CREATE_TIME,
        # A clock ahead of the broker's must not poison a batch.
        "message.timestamp.after.max.ms": NEVER,
        "message.timestamp.before.max.ms": NEVER,
        "cleanup.policy": "delete",
    }


def _wait_for(settings: Settings, admin: AdminClient, names: list[str]) -> ClusterMetadata:
    """The cluster once every broker's metadata may be expected to hold the new topics."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        found = _metadata(settings, admin)
        if all(name in found.topics for name in names):
            return found
        time.sleep(0.1)
    raise ServiceUnreachable(f"Kafka at {settings.broker_url} created topics {', '.join(names)} but does not list them")


def _check_partitions(settings: Settings, name: str, like: str, found: int) -> None:
    wanted = settings.topic_settings(like).partitions
    if found != wanted:
        if name != like or name.endswith(RETRY_SUFFIX):
            # Following it, the next line would ask for the contrary for the topic itself.
            raise UsageError(
                f"topic {name!r} has {found} partitions, that of its messages {wanted}: stop the workers and delete it,"
                " they make it anew from PostgreSQL"
            )
        key = f"topics.{like.removeprefix(settings.broker.topic_prefix)}.partitions"
        raise UsageError(
            f"topic {name!r} has {found} partitions, faust.yml says {wanted}: set {key} to {found}"
            " (another count would let later messages of a conversation overtake earlier ones)"
        )


def _max_message_bytes(settings: Settings, admin: AdminClient, names: list[str]) -> dict[str, int]:
    return {name: int(value) for name, value in _configured(settings, admin, names, "max.message.bytes").items()}


def _configured(settings: Settings, admin: AdminClient, names: list[str], setting: str) -> dict[str, str]:
    """What this setting is of each of these topics."""
    if not names:
        return {}
    asked = {ConfigResource(ResourceType.TOPIC, name): name for name in names}
    try:
        found = admin.describe_configs(list(asked), request_timeout=TIMEOUT)
        entries = {asked[resource]: future.result(TIMEOUT + 5) for resource, future in found.items()}
    except KafkaException as error:
        raise unreachable(settings, error) from None
    return {name: str(entries[name][setting].value) for name in names}
