"""The configuration with which Debezium's connector sends the records that other relays send.

Every setting is here for a reason: it decides bytes, order, or what is lost. `BYTES` are those
that a connector which somebody else made must have; the others may be tuned.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from streams.broker import kafka
from streams.database.engine import read_url
from streams.errors import UsageError
from streams.settings import Settings

CLASS = "io.debezium.connector.postgresql.PostgresConnector"
SECRETS = ("database.password",)
STRING = "org.apache.kafka.connect.storage.StringConverter"
ROUTER = "transforms.outbox."

# What rewrites columns or rows before the router sees them.
REWRITING = ("column.", "converters", "post.processors", "predicates", "binary.handling.mode")

# A record's key, value, headers, time and topic, byte for byte.
BYTES: Mapping[str, str] = {
    "connector.class": CLASS,
    "key.converter": STRING,
    "value.converter": STRING,
    # null columns are headers with null, numbers are decimal text.
    "header.converter": "org.apache.kafka.connect.storage.SimpleHeaderConverter",
    # Since Debezium 3.2 three headers more, unless told not to.
    "extended.headers.enabled": "false",
    "time.precision.mode": "adaptive",
    "tombstones.on.delete": "false",
    "transforms": "outbox",
    ROUTER + "type": "io.debezium.transforms.outbox.EventRouter",
    ROUTER + "table.field.event.id": "id",
    ROUTER + "table.field.event.key": "key",
    ROUTER + "table.field.event.type": "biz_type",
    ROUTER + "table.field.event.payload": "payload",
    # Unset it would be the time of Debezium's work.
    ROUTER + "table.field.event.timestamp": "created_at",
    ROUTER
    + "table.fields.additional.placement": "biz_type:header,traceparent:header,resend_of:header",
    ROUTER + "table.expand.json.payload": "false",
    ROUTER + "route.by.field": "topic",
    ROUTER + "route.topic.replacement": "${routedByValue}",
}

# Nothing lost, nothing out of order.
SAFETY: Mapping[str, str] = {
    "tasks.max": "1",
    "plugin.name": "pgoutput",
    # Publication first, then slot, by `streams migrate`: made here they could skip rows.
    "publication.autocreate.mode": "disabled",
    # A snapshot would publish everything again after a change of relay.
    "snapshot.mode": "no_data",
    "errors.tolerance": "none",
    # Debezium confirms what it has seen, and an idle outbox shows it nothing: without this the slot
    # holds back the log of all other tables, and the floor of the last messages waits for the next
    # one.
    "heartbeat.action.query": "SELECT pg_logical_emit_message(false, 'heartbeat', '')",
    "message.prefix.exclude.list": "heartbeat",
    # A task that waits for a broker cannot be stopped: Connect leaves it behind, and it keeps the
    # slot. One that fails after some seconds lets go, and is started again.
    "producer.override.max.block.ms": "4000",
    "producer.override.acks": "all",
    "producer.override.enable.idempotence": "true",
}

# What loses rows or their order, unless it is unset or a value that fits.
HARMLESS: Mapping[str, str] = {
    "event.processing.failure.handling.mode": "fail",
    "skipped.operations": "none|[utd, ]*",
    "slot.drop.on.stop": "false",
    "flush.lsn.source": "true",
    "lsn.flush.mode": "connector|connector_and_driver",
    "producer.override.partitioner.class": "",
    "producer.override.partitioner.ignore.keys": "false",
    "producer.override.transactional.id": "",
}
# Ours, which Connect keeps and nobody reads but us: the database for which a relay registered it.
DATABASE = "outbox.streams.database"
TABLES, NO_TABLES = "table.include.list", "table.exclude.list"
SCHEMAS, NO_SCHEMAS = "schema.include.list", "schema.exclude.list"
HEARTBEAT = "heartbeat.interval.ms"

TUNING: Mapping[str, str] = {
    TABLES: r"[^.]+\.outbox",
    "retriable.restart.connector.wait.ms": "1000",
    "poll.interval.ms": "5",
    "max.batch.size": "8192",
    "max.queue.size": "32768",
    HEARTBEAT: "1000",
    "producer.override.compression.type": "lz4",
    "producer.override.linger.ms": "5",
    "producer.override.batch.size": "1000000",
    "producer.override.delivery.timeout.ms": str(2**31 - 1),
}


def connector(settings: Settings) -> dict[str, str]:
    """The whole configuration, password included, for `PUT /connectors/NAME/config`."""
    relay = settings.relay
    configuration = {
        **BYTES,
        **SAFETY,
        **TUNING,
        **_database(settings.database_url),
        "slot.name": relay.name,
        "publication.name": relay.publication,
        "topic.prefix": relay.name,
        "producer.override.max.request.size": str(max(kafka.record_limit(settings), 1_048_576)),
    }
    return dict(sorted(configuration.items()))


def public(configuration: Mapping[str, str]) -> dict[str, str]:
    """The configuration as it may be shown."""
    return {key: "***" if key in SECRETS else value for key, value in configuration.items()}


def heartbeats(settings: Settings) -> str:
    """The topic of the connector's heartbeats, which has to exist."""
    return f"__debezium-heartbeat.{settings.relay.name}"


def differences(configuration: Mapping[str, str], settings: Settings, schema: str) -> list[str]:
    """What a running connector must have and has not, one line each.

    `schema` is the one that the outbox is in.
    """
    names = {"slot.name": settings.relay.name, "publication.name": settings.relay.publication}
    lines = []
    for key, expected in {**BYTES, **SAFETY, **names}.items():
        if configuration.get(key) != expected:
            value = f"is {configuration[key]!r}" if key in configuration else "is not set"
            lines.append(f"{key} {value}: set it to {expected!r}")
    unknown = {
        key for key in configuration if key.startswith((ROUTER, *REWRITING)) and key not in BYTES
    }
    unknown |= {
        key
        for key, fits in HARMLESS.items()
        if key in configuration and not re.fullmatch(fits, configuration[key])
    }
    table = f"{schema}.outbox"
    unknown |= {
        key
        for key, name in ((NO_TABLES, table), (NO_SCHEMAS, schema))
        if key in configuration and _named(name, configuration[key])
    }
    if SCHEMAS in configuration and not _named(schema, configuration[SCHEMAS]):
        unknown.add(SCHEMAS)
    if TABLES in configuration and not _named(table, configuration[TABLES]):
        lines.append(f"{TABLES} is {configuration[TABLES]!r}: set it to {TUNING[TABLES]!r}")
    # Its default is none at all, and the action query comes with a heartbeat.
    if not re.fullmatch("0*[1-9][0-9]*", configuration.get(HEARTBEAT, "0")):
        value = f"is {configuration[HEARTBEAT]!r}" if HEARTBEAT in configuration else "is not set"
        lines.append(f"{HEARTBEAT} {value}: set it to {TUNING[HEARTBEAT]!r}")
    return lines + [f"{key} is {configuration[key]!r}: remove it" for key in sorted(unknown)]


def _named(name: str, patterns: str) -> bool:
    """Whether one of these expressions matches this whole name, or cannot be understood.

    They are separated by commas.
    """
    for pattern in patterns.split(","):
        try:
            if re.fullmatch(pattern.strip(), name, re.IGNORECASE):
                return True
        except re.error:
            return True
    return False


def _database(url: str) -> dict[str, str]:
    parts = read_url(url)
    host = str(parts.get("host", ""))
    if host.startswith(("/", "@")):
        raise UsageError(
            f"Debezium's connector reaches no socket, and 'database.url' names {host}: name the"
            " server's host and port"
        )
    if "," in host:
        raise UsageError(
            f"Debezium's connector reaches one host, and 'database.url' names {parts['host']}:"
            " name the primary"
        )
    names = {
        "host": "database.hostname",
        "port": "database.port",
        "user": "database.user",
        "password": "database.password",
        "dbname": "database.dbname",
        "sslmode": "database.sslmode",
        "sslrootcert": "database.sslrootcert",
    }
    defaults = {"host": "localhost", "port": "5432"}
    return {
        name: str(value)
        for part, name in names.items()
        if (value := parts.get(part, defaults.get(part)))
    }
