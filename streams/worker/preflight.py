"""What has to be true before a worker starts; each check is one clear line and an exit code."""

from __future__ import annotations

import os
import socket

from streams.broker import beat, consumers, kafka, topics
from streams.broker.topics import Cluster, Survey
from streams.database import migrate, query
from streams.errors import UsageError
from streams.registry import Registry
from streams.settings import RETRY_SUFFIX, Settings
from streams.worker.retries.tables import TABLES


def check(
    settings: Settings,
    registry: Registry,
    pages: tuple[str, int] | None = None,
    survey: Survey | None = None,
) -> Cluster:
    """Refuse to start where a worker could not work; gives the topics it will work with.

    Checked are the database (reachable and migrated, biz_types known to it), the broker, and the
    topics' partition counts.

    Returns the topics the worker will work with.

    `pages` is where the worker will serve its pages: nobody else may listen there.
    """
    if pages:
        _check_port(*pages)
    with migrate.connection(settings) as connection:
        migrate.check(connection, registry)
        migrate.check_promises(connection, registry)
        migrate.register(connection, settings, registry)
    refuse_unserved(settings, registry)
    names = [*registry.consumed, *(topic + RETRY_SUFFIX for topic in registry.consumed)]
    # Faust would make them itself, after it has looked at them: a worker that comes first would
    # find them without partitions.
    changelogs = {
        f"{settings.worker.group}-{topic}-{table}-changelog": topic
        for topic in registry.consumed
        for table in TABLES
    }
    cluster = topics.prepare(settings, survey or Survey(settings), names, changelogs)
    # Another system's envelopes are compared with no row.
    kafka.check_times(
        settings, [topic for topic in registry.consumed if topic not in registry.envelopes]
    )
    beat.prepare_topic(settings)
    check_beat(settings)
    return cluster


def refuse_unserved(settings: Settings, registry: Registry) -> None:
    """UsageError when messages wait on a topic that nobody reads any more.

    They are of a biz_type that no agent here knows. An agent that was left out would stop silently
    otherwise. Where other workers read the topic, they have the agent.
    """
    if not registry.consumed:
        raise UsageError(
            f"setting 'agents' is {list(settings.agents)}: expected a package with an agent in it"
        )
    with migrate.connection(settings) as connection:
        known = {"known": list(registry.agents), "consumed": list(registry.consumed)}
        rows = connection.exec_driver_sql(query("unserved_biz_types"), known).all()
    if not rows:
        return
    topics = {row.topic for row in rows}
    group = consumers.consumer_group(settings, topics)
    # Of a group that is being dealt out again nobody knows yet who reads what.
    served = (
        topics
        if group.members and not group.settled
        else {topic for topic in topics if group.assigned.get(topic)}
    )
    unread = consumers.unread(settings, topics - served)
    for row in rows:
        if row.topic not in served and (row.open or row.topic in unread):
            raise UsageError(
                f"messages of biz_type {row.biz_type} wait on topic {row.topic}, which nobody"
                " reads, and no agent here knows it: add its package to `agents`,"
                f" or run `streams biz-types retire {row.biz_type}`"
            )


def check_beat(settings: Settings) -> None:
    """UsageError when the database went back; Kafka's beat is read before the database's."""
    beats = beat.read(settings)
    with migrate.connection(settings) as connection:
        rows = [tuple(row) for row in connection.exec_driver_sql(query("beats"))]
    beat.refuse_gone_back(beats, rows, settings.relay.name)


def _check_port(host: str, port: int) -> None:
    try:
        # As the web server itself does it: a port that was in use a moment ago is free.
        socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        ).close()
    except OSError as error:
        raise UsageError(
            f"setting 'web.port' is {port}: expected a port of {host} to listen on"
            f" ({os.strerror(error.errno or 0)}):"
            " set STREAMS_WEB__PORT, workers on one machine need different ones"
        ) from None
