"""Kafka as the settings describe it: how clients log in, which topics exist and how they are.

Blocking calls; async callers run them in a thread. Shared by the relay, the worker's start and the
command line.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar

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
OLDEST = "3.6"
"""The oldest Kafka that is supported."""
# For how long a cluster that starts is given to bring up as many brokers as a topic needs.
REGISTER_SECONDS = 10.0
# What is over by itself: nobody answers, or a broker that is only starting, or chooses its
# controller, says so.
AWAY = (
    KafkaError._TRANSPORT,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError._TIMED_OUT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.NOT_CONTROLLER,
    KafkaError.BROKER_NOT_AVAILABLE,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.THROTTLING_QUOTA_EXCEEDED,
)
# What a broker says of a partition or a group that is not its own yet, or no longer: of a topic
# that was made this moment for one.
MOVING = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.KAFKA_STORAGE_ERROR,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
)
AGAIN_SECONDS = 0.2
# What an older one says of the setting that lets a clock be ahead of the broker's.
NO_SUCH_SETTING = "Unknown topic config name: message.timestamp."
# Others may make a topic faster than we do, and in another way.
REPLACED_MOST = 3
# What a record may need beside its payload: a key of 1024 bytes, the headers, the batch around it.
OVERHEAD = 8192

T = TypeVar("T")


class TooFewBrokers(ServiceUnreachable):
    """A topic needs more brokers for its replication factor than have registered.

    The others are only starting, or do not exist: Kafka answers the same.
    """


def client(settings: Settings, **options: Any) -> dict[str, Any]:
    """librdkafka configuration to reach the broker; `options` are added with `_` for `.`."""
    broker = settings.broker
    configuration: dict[str, Any] = {
        "bootstrap.servers": settings.broker_url,
        "client.id": "outbox-streams",
        "security.protocol": broker.security_protocol,
        "allow.auto.create.topics": False,
        "reconnect.backoff.max.ms": 1000,
        # An outage is reported once, by whoever notices it; librdkafka would write to stderr every
        # second.
        "log_level": 0,
        "logger": _nobody,
        "error_cb": lambda error: None,
    }
    if broker.sasl_mechanism:
        configuration["sasl.mechanism"] = broker.sasl_mechanism
        configuration["sasl.username"] = broker.sasl_username
        configuration["sasl.password"] = broker.sasl_password
    if broker.ssl_cafile:
        configuration["ssl.ca.location"] = broker.ssl_cafile
    return configuration | {name.replace("_", "."): value for name, value in options.items()}


def headers(message: Message) -> dict[str, bytes | str | None]:
    """A record's headers; none where its names are not UTF-8, which the client cannot read."""
    try:
        return dict(message.headers() or ())
    except UnicodeDecodeError:
        return {}


def record_limit(settings: Settings) -> int:
    """The largest record that may have to travel: the largest payload, its key, its headers."""
    return settings.outbox.max_bytes + OVERHEAD


def prepare_topics(
    settings: Settings,
    names: Iterable[str],
    changelogs: Mapping[str, str] = _NONE,
    strangers: Collection[str] = (),
    *,
    patient: bool = True,
) -> None:
    """Create the topics that are missing; brokers still starting are waited for if `patient`.

    ServiceUnreachable, or UsageError when one has another partition count.

    `changelogs` are compacted topics with as many partitions as the topic each of them names.
    Those and the topics of wake-up calls are made from PostgreSQL, so they are replaced when their
    count is wrong. So is a topic of our messages in whose place somebody made another one with
    fewer partitions, as brokers do that make what they are asked for: `strangers` are the topics
    that are others than those we worked with.
    """
    admin = AdminClient(client(settings))
    wanted = {name: name for name in names} | dict(changelogs)
    for _ in range(REPLACED_MOST):
        topics = _metadata(settings, admin).topics
        counts = {name: len(topics[name].partitions) for name in wanted.keys() & topics.keys()}
        wrong = {
            name
            for name, count in counts.items()
            if count != settings.topic_settings(wanted[name]).partitions
        }
        derived = {name for name in wrong if name in changelogs or name.endswith(RETRY_SUFFIX)}
        usurped = {
            name
            for name in wrong - derived
            if name in strangers and _may_replace(settings, name, counts[name])
        }
        for name in sorted(wrong - derived - usurped):
            _refuse_partitions(settings, name, counts[name])
        # Only now that the topics they belong to are as they must be.
        _delete(settings, admin, {name: counts[name] for name in sorted(derived | usurped)})
        missing = sorted(wrong | (wanted.keys() - counts.keys()))
        if not missing:
            return
        new = [_new_topic(settings, name, wanted[name], name in changelogs) for name in missing]
        (_create_patiently if patient else _create)(settings, admin, new)
        _wait_for(settings, admin, missing)
    for name, count in sorted(counts.items()):
        _check_partitions(settings, name, wanted[name], count)


def prepare_topic(
    settings: Settings,
    name: str,
    *,
    partitions: int,
    config: Mapping[str, str] = _NONE,
    patient: bool = True,
) -> None:
    """Create a topic that carries no messages of ours, if it is missing.

    ServiceUnreachable or UsageError; brokers still starting are waited for if `patient`.
    """
    admin = AdminClient(client(settings))
    if name not in _metadata(settings, admin).topics:
        factor = settings.topic.replication_factor
        new = NewTopic(
            name, num_partitions=partitions, replication_factor=factor, config=dict(config)
        )
        (_create_patiently if patient else _create)(settings, admin, [new])


def make_topic(
    settings: Settings, name: str, *, partitions: int, replication_factor: int, retention_hours: int
) -> None:
    """Create a topic of messages as whoever registered it has said.

    ServiceUnreachable, TooFewBrokers at once, or UsageError; blocking.
    """
    config = _messages_config(settings) | {"retention.ms": str(retention_hours * 3_600_000)}
    new = NewTopic(
        name, num_partitions=partitions, replication_factor=replication_factor, config=config
    )
    _create(settings, AdminClient(client(settings)), [new])


def retention(
    settings: Settings, admin: AdminClient, names: Iterable[str]
) -> dict[str, float | None]:
    """For how many seconds these topics keep a record, None for ever.

    It blocks. ServiceUnreachable when the broker does not say.
    """
    limits = _configured(settings, admin, sorted(names), "retention.ms")
    return {name: None if int(limit) < 0 else int(limit) / 1000 for name, limit in limits.items()}


def check_times(settings: Settings, names: Iterable[str]) -> None:
    """The broker leaves records of these topics their own times.

    ServiceUnreachable or UsageError.
    """
    kinds = _configured(
        settings, AdminClient(client(settings)), sorted(names), "message.timestamp.type"
    )
    for name, kind in kinds.items():
        if kind != CREATE_TIME:
            raise UsageError(
                f"topic {name!r} has message.timestamp.type {kind}: expected {CREATE_TIME},"
                " a record's time says whose it is (kafka-configs.sh --bootstrap-server"
                f" {settings.broker_url} --alter --topic {name} --add-config"
                f" message.timestamp.type={CREATE_TIME})"
            )


def topic_limits(
    settings: Settings, names: Iterable[str], *, patience: float = 0.0
) -> dict[str, int]:
    """The largest record batch in bytes of each of these topics that exists.

    It looks again for `patience` seconds.
    """
    admin = AdminClient(client(settings))
    wanted = set(names)
    deadline = time.monotonic() + patience
    while True:
        known = wanted & _metadata(settings, admin).topics.keys()
        if known == wanted or time.monotonic() >= deadline:
            break
        time.sleep(0.2)
    return _max_message_bytes(settings, admin, sorted(known))


def answer(settings: Settings, ask: Callable[[], T], *, seconds: float = TIMEOUT) -> T:
    """What `ask` returns, called again for that long while Kafka moves what it asks about.

    ServiceUnreachable for every error of Kafka's client that remains; it blocks.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except KafkaException as error:
            # Not `retriable()`: librdkafka sets that for a producer's transactions only.
            if error.args[0].code() not in MOVING or time.monotonic() > deadline:
                raise unreachable(settings, error) from None
        time.sleep(AGAIN_SECONDS)


def unreachable(settings: Settings, error: KafkaException) -> ServiceUnreachable:
    """A Kafka client's error as one line."""
    return ServiceUnreachable(f"Kafka at {settings.broker_url} cannot be reached: {reason(error)}")


def reason(error: KafkaException) -> str:
    """librdkafka's words for an error, without its decoration."""
    cause = error.args[0] if error.args else error
    return str(cause.str()) if isinstance(cause, KafkaError) else str(cause)


def _metadata(settings: Settings, admin: AdminClient) -> ClusterMetadata:
    try:
        # All topics: asking for one by name could create it.
        return admin.list_topics(timeout=TIMEOUT)
    except KafkaException as error:
        raise unreachable(settings, error) from None


def _create_patiently(settings: Settings, admin: AdminClient, topics: list[NewTopic]) -> None:
    """Create them, and wait for brokers that have not registered yet; TooFewBrokers in the end.

    A cluster that starts takes connections as soon as its first broker is there.
    """
    deadline, logged = time.monotonic() + REGISTER_SECONDS, False
    while True:
        try:
            return _create(settings, admin, topics)
        except TooFewBrokers as few:
            if time.monotonic() >= deadline:
                raise
            if not logged:
                logger.warning("brokers are missing, waiting for them", extra={"reason": str(few)})
            logged = True
        time.sleep(0.5)


def _create(settings: Settings, admin: AdminClient, topics: list[NewTopic]) -> None:
    futures = admin.create_topics(topics, operation_timeout=TIMEOUT)
    for wanted in topics:
        try:
            _answer(settings, futures[wanted.topic])
        except KafkaException as error:
            code = error.args[0].code()
            if code == KafkaError.TOPIC_ALREADY_EXISTS:
                continue
            if code == KafkaError.INVALID_REPLICATION_FACTOR:
                raise _too_few(settings, admin, wanted, reason(error)) from None
            if code == KafkaError.INVALID_CONFIG and NO_SUCH_SETTING in reason(error):
                raise UsageError(
                    f"Kafka at {settings.broker_url} is older than {OLDEST}, which knows"
                    f" message.timestamp.after.max.ms: expected {OLDEST} or newer, upgrade it"
                ) from None
            raise UsageError(
                f"topic {wanted.topic!r} cannot be created with {wanted.num_partitions} partitions"
                f" and replication factor {wanted.replication_factor}: {reason(error)}"
            ) from None
        logger.info(
            "topic created", extra={"topic": wanted.topic, "partitions": wanted.num_partitions}
        )


def _too_few(
    settings: Settings, admin: AdminClient, wanted: NewTopic, answer: str
) -> TooFewBrokers:
    factor, there = wanted.replication_factor, len(_metadata(settings, admin).brokers)
    return TooFewBrokers(
        f"topic {wanted.topic!r} cannot be created with replication factor {factor}: {there} of"
        f" {factor} brokers have registered with Kafka at {settings.broker_url}, expected {factor}"
        " or more (start them, or lower the topic's replication_factor if there are no others):"
        f" {answer}"
    )


def _answer(settings: Settings, future: Future[Any]) -> Any:
    """What Kafka answered; ServiceUnreachable when that is over by itself, else KafkaException."""
    try:
        return future.result(TIMEOUT + 5)
    except TimeoutError:
        raise ServiceUnreachable(
            f"Kafka at {settings.broker_url} does not answer in time"
        ) from None
    except KafkaException as error:
        if error.args[0].code() in AWAY:
            raise unreachable(settings, error) from None
        raise


def _new_topic(settings: Settings, name: str, like: str, compacted: bool) -> NewTopic:
    wanted = settings.topic_settings(like)
    config = _messages_config(settings)
    if compacted:
        config["cleanup.policy"] = "compact"
    else:
        config["retention.ms"] = str(wanted.retention_hours * 3_600_000)
    return NewTopic(
        name,
        num_partitions=wanted.partitions,
        replication_factor=wanted.replication_factor,
        config=config,
    )


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


def _may_replace(settings: Settings, name: str, partitions: int) -> bool:
    """Whether PostgreSQL has every message of this topic, which has too few partitions."""
    wanted = settings.topic_settings(name)
    return wanted.format != "envelope" and partitions < wanted.partitions


def _delete(settings: Settings, admin: AdminClient, counts: Mapping[str, int]) -> None:
    """Delete these topics, which have a wrong number of partitions, and wait for that.

    By name, as Kafka's client does it: of two processes that do so at once, the later one may
    delete what the former has made right. Nothing is lost or done twice by that, for whoever works
    with a topic notes its id: relay and workers prepare anew, and what it held is sent again from
    PostgreSQL, as after every topic that is lost.
    """
    if not counts:
        return
    for name, future in admin.delete_topics(list(counts), operation_timeout=TIMEOUT).items():
        try:
            _answer(settings, future)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                continue
            raise UsageError(
                f"topic {name!r} has {counts[name]} partitions and cannot be deleted:"
                f" {reason(error)}; stop the workers and"
                " delete it, relay and workers make it anew from PostgreSQL"
            ) from None
        logger.warning(
            "topic deleted, it had a wrong number of partitions",
            extra={"topic": name, "partitions": counts[name]},
        )
    deadline = time.monotonic() + TIMEOUT
    while counts.keys() & _metadata(settings, admin).topics.keys() and time.monotonic() < deadline:
        time.sleep(0.1)


def _wait_for(settings: Settings, admin: AdminClient, names: list[str]) -> None:
    """Until every broker's metadata may be expected to hold the new topics."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        metadata = _metadata(settings, admin)
        if all(name in metadata.topics for name in names):
            return
        time.sleep(0.1)
    raise ServiceUnreachable(
        f"Kafka at {settings.broker_url} created topics {', '.join(names)} but does not list them"
    )


def _check_partitions(settings: Settings, name: str, like: str, count: int) -> None:
    if count != settings.topic_settings(like).partitions:
        if name != like or name.endswith(RETRY_SUFFIX):
            # Following it, the next line would ask for the contrary for the topic itself.
            raise UsageError(
                f"topic {name!r} has {count} partitions, that of its messages"
                f" {settings.topic_settings(like).partitions}:"
                " stop the workers and delete it, they make it anew from PostgreSQL"
            )
        _refuse_partitions(settings, name, count)


def _refuse_partitions(settings: Settings, name: str, count: int) -> NoReturn:
    key = f"topics.{name.removeprefix(settings.broker.topic_prefix)}.partitions"
    raise UsageError(
        f"topic {name!r} has {count} partitions, faust.yml says"
        f" {settings.topic_settings(name).partitions}: set {key} to {count} (another count would"
        " let later messages of a conversation overtake earlier ones), or delete the topic if"
        " nobody meant it to be so: it is made anew, and what it held of ours is sent again"
    )


def _max_message_bytes(settings: Settings, admin: AdminClient, names: list[str]) -> dict[str, int]:
    return {
        name: int(value)
        for name, value in _configured(settings, admin, names, "max.message.bytes").items()
    }


def _configured(
    settings: Settings, admin: AdminClient, names: list[str], setting: str
) -> dict[str, str]:
    """What this setting is of each of these topics."""
    if not names:
        return {}
    asked = {ConfigResource(ResourceType.TOPIC, name): name for name in names}
    try:
        futures = admin.describe_configs(list(asked), request_timeout=TIMEOUT)
        entries = {
            asked[resource]: _answer(settings, future) for resource, future in futures.items()
        }
    except KafkaException as error:
        raise unreachable(settings, error) from None
    return {name: str(entries[name][setting].value) for name in names}
