"""The connector's configuration: complete, without secrets where it is shown.

And what is wrong with another one.
"""

from __future__ import annotations

import pytest

from streams.errors import UsageError
from streams.relay.debezium.config import STRING, connector, differences, public
from streams.settings import Settings, load


@pytest.fixture
def settings() -> Settings:
    return load(
        environ={
            "DATABASE_URL": "postgresql://app:secret-canary@db.example:6543/shop?sslmode=require",
            "BROKER_URL": "kafka.example:9092",
            "STREAMS_RELAY__NAME": "chat",
        }
    )


def test_it_reads_our_slot_of_our_database(settings: Settings) -> None:
    configuration = connector(settings)
    expected = {
        "database.hostname": "db.example",
        "database.port": "6543",
        "database.user": "app",
        "database.password": "secret-canary",
        "database.dbname": "shop",
        "database.sslmode": "require",
        "slot.name": "chat",
        "publication.name": "outbox_pub",
        "topic.prefix": "chat",
    }
    assert expected.items() <= configuration.items()
    assert differences(configuration, settings, "public") == []


def test_it_reads_one_host() -> None:
    settings = load(
        environ={
            "DATABASE_URL": "postgresql://app:canary@one:1,two:2/shop",
            "BROKER_URL": "kafka:9092",
        }
    )
    with pytest.raises(
        UsageError, match=r"reaches one host, and 'database\.url' names one,two: name the primary$"
    ):
        connector(settings)
    with pytest.raises(UsageError, match=r"reaches no socket, and 'database\.url' names /run/pg: "):
        connector(
            load(environ={"DATABASE_URL": "postgresql://%2Frun%2Fpg/d", "BROKER_URL": "kafka:9092"})
        )


def test_it_is_shown_without_the_password(settings: Settings) -> None:
    assert "canary" not in str(public(connector(settings)))


CHANGES = [
    ({"extended.headers.enabled": "true"}, "extended.headers.enabled is 'true': set it to 'false'"),
    ({"extended.headers.enabled": None}, "extended.headers.enabled is not set: set it to 'false'"),
    (
        {"value.converter": "org.apache.kafka.connect.json.JsonConverter"},
        f"value.converter is 'org.apache.kafka.connect.json.JsonConverter': set it to {STRING!r}",
    ),
    (
        {"transforms.outbox.table.field.event.timestamp": None},
        "transforms.outbox.table.field.event.timestamp is not set: set it to 'created_at'",
    ),
    (
        {"transforms.outbox.route.topic.regex": "x"},
        "transforms.outbox.route.topic.regex is 'x': remove it",
    ),
    ({"column.mask.with.12.chars": "x"}, "column.mask.with.12.chars is 'x': remove it"),
    ({"slot.name": "debezium"}, "slot.name is 'debezium': set it to 'chat'"),
    ({"snapshot.mode": "initial"}, "snapshot.mode is 'initial': set it to 'no_data'"),
    ({"tasks.max": "2"}, "tasks.max is '2': set it to '1'"),
    ({"producer.override.acks": "1"}, "producer.override.acks is '1': set it to 'all'"),
    (
        {"table.include.list": r"public\.users,public.orders"},
        r"table.include.list is 'public\\.users,public.orders': set it to '[^.]+\\.outbox'",
    ),
    (
        {"table.exclude.list": r"public\.outbox"},
        r"table.exclude.list is 'public\\.outbox': remove it",
    ),
    (
        {"table.include.list": "outbox"},
        r"table.include.list is 'outbox': set it to '[^.]+\\.outbox'",
    ),
    (
        {"table.include.list": "app.outbox"},
        r"table.include.list is 'app.outbox': set it to '[^.]+\\.outbox'",
    ),
    ({"schema.include.list": "app"}, "schema.include.list is 'app': remove it"),
    ({"schema.exclude.list": "pub.*"}, "schema.exclude.list is 'pub.*': remove it"),
    ({"heartbeat.interval.ms": "0"}, "heartbeat.interval.ms is '0': set it to '1000'"),
    ({"heartbeat.interval.ms": None}, "heartbeat.interval.ms is not set: set it to '1000'"),
    ({"table.exclude.list": ".*"}, "table.exclude.list is '.*': remove it"),
    ({"skipped.operations": "c,t"}, "skipped.operations is 'c,t': remove it"),
    (
        {"event.processing.failure.handling.mode": "skip"},
        "event.processing.failure.handling.mode is 'skip': remove it",
    ),
    ({"slot.drop.on.stop": "true"}, "slot.drop.on.stop is 'true': remove it"),
    ({"lsn.flush.mode": "manual"}, "lsn.flush.mode is 'manual': remove it"),
    (
        {"producer.override.partitioner.ignore.keys": "true"},
        "producer.override.partitioner.ignore.keys is 'true': remove it",
    ),
    (
        {"producer.override.partitioner.class": "org.example.Mine"},
        "producer.override.partitioner.class is 'org.example.Mine': remove it",
    ),
]


@pytest.mark.parametrize(("change", "line"), CHANGES, ids=[line.split()[0] for _, line in CHANGES])
def test_a_connector_that_would_send_other_records_is_named(
    settings: Settings, change: dict[str, str | None], line: str
) -> None:
    changed = {
        key: value for key, value in {**connector(settings), **change}.items() if value is not None
    }
    assert differences(changed, settings, "public") == [line]


def test_a_setting_that_only_changes_speed_is_nobodys_business(settings: Settings) -> None:
    assert (
        differences(
            connector(settings) | {"max.batch.size": "100", "poll.interval.ms": "500"},
            settings,
            "public",
        )
        == []
    )


HARMLESS = [
    {"table.include.list": None},
    {"table.include.list": "public.outbox"},
    {"table.include.list": r"public\.users, public\.outbox"},
    {"schema.include.list": "app, public"},
    {"schema.exclude.list": "app"},
    {"heartbeat.interval.ms": "5000"},
    {"table.include.list": ".*"},
    {"table.exclude.list": r"public\.users"},
    {"skipped.operations": "none"},
    {"skipped.operations": "u,d,t"},
    {"slot.drop.on.stop": "false"},
]


@pytest.mark.parametrize("change", HARMLESS, ids=[str(change) for change in HARMLESS])
def test_connector_settings_that_lose_nothing_may_be_there(
    settings: Settings, change: dict[str, str | None]
) -> None:
    changed = {
        key: value for key, value in {**connector(settings), **change}.items() if value is not None
    }
    assert differences(changed, settings, "public") == []
