"""The servers and databases behind the fixtures of `pytest_outbox_streams`."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from streams.database import connect_sync, migrate
from streams.dev.downloads import Progress
from streams.dev.kafka import KafkaBroker
from streams.dev.postgres import PostgresServer
from streams.dev.screen import DOWNLOAD_SECONDS, describe
from streams.errors import StreamsError, UsageError
from streams.registry import configured
from streams.settings import load

UNSAFE = {"fsync": "off"}
"""A server of tests loses nothing when it is killed; that the machine loses power is its end."""

GONE_MILLISECONDS = 30_000
"""How long a server process may take to end before its database is dropped."""

_numbers = itertools.count(1)


@contextmanager
def readable() -> Iterator[None]:
    """An error on purpose is one line in pytest's report, without a traceback."""
    complaint = ""
    try:
        yield
    except StreamsError as error:
        complaint = f"outbox-streams: {error}"
    if complaint:
        pytest.fail(complaint, pytrace=False)


@contextmanager
def postgres(directory: Path) -> Iterator[PostgresServer]:
    """A server for as long as the block."""
    server = PostgresServer(directory, trusting=True, settings=UNSAFE)
    asyncio.run(server.start())
    try:
        yield server
    finally:
        asyncio.run(server.stop())


@contextmanager
def kafka(directory: Path, config: pytest.Config) -> Iterator[KafkaBroker]:
    """A broker for as long as the block.

    The download that the first start on a machine needs is shown.
    """
    broker = KafkaBroker(directory, report=shown(config))
    asyncio.run(broker.start())
    try:
        yield broker
    finally:
        # Its data ends with it: an orderly end writes all of that down, topic by topic.
        broker.kill()


def migrated(server: PostgresServer) -> str:
    """The URL of a new database with our tables and faust.yml's biz_types.

    It has no replication slot.
    """
    url = _created(server, f"template_{os.getpid()}")
    settings = load(
        environ={**os.environ, "STREAMS_DATABASE__URL": url, "STREAMS_RELAY__MODE": "poll"}
    )
    for _ in migrate.migrate(settings, configured(settings)):
        pass
    return url


@contextmanager
def copied(server: PostgresServer, template: str) -> Iterator[str]:
    """The URL of a copy of this database, dropped at the end with the replication slots in it."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    url = _created(server, name, urlsplit(template).path.strip("/"))
    try:
        yield url
    finally:
        _drop(server, name)


def shown(config: pytest.Config) -> Callable[[Progress], None]:
    """Tells of a download in pytest's own output, now and then.

    Output is captured while a fixture runs; this is shown all the same.
    """
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    told = -DOWNLOAD_SECONDS

    def show(progress: Progress) -> None:
        nonlocal told
        if reporter is None or time.monotonic() - told < DOWNLOAD_SECONDS:
            return
        told = time.monotonic()
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            reporter.ensure_newline()
            reporter.write_line(f"outbox-streams: downloading {describe(progress)}", flush=True)

    return show


def _drop(server: PostgresServer, name: str) -> None:
    """Drop this database and its slots although clients are connected.

    They would come back, as a Connect worker does.
    """
    database = sql.Identifier(name)
    deadline = time.monotonic() + GONE_MILLISECONDS / 1000
    with connect_sync(server.url) as connection:
        connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(database))
        while True:
            # Who was let in a moment before may show, and take a slot, only now.
            connection.execute(
                "SELECT pg_terminate_backend(pid, %s) FROM pg_stat_activity WHERE datname = %s",
                [GONE_MILLISECONDS, name],
            )
            try:
                connection.execute(
                    "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
                    " WHERE database = %s",
                    [name],
                )
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(database))
            except psycopg.errors.ObjectInUse:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return


def _created(server: PostgresServer, name: str, template: str = "template1") -> str:
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
        sql.Identifier(name), sql.Identifier(template)
    )
    with connect_sync(server.url) as connection:
        try:
            connection.execute(create)
        except psycopg.errors.ObjectInUse:
            raise UsageError(
                f"database {template} cannot be copied while somebody is connected to it:"
                " close every connection in your fixture streams_template before it returns"
            ) from None
    return server.url_of(name)
