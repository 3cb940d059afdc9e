"""Pytest fixtures: real servers, a fresh migrated database, or a deployment for each test.

The plugin is loaded in every run, so nothing is imported and nothing started before a test asks for
it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from streams.dev.kafka import KafkaBroker
    from streams.dev.postgres import PostgresServer
    from streams.testing.deployment import Deployment


@pytest.fixture(scope="session")
def streams_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A real PostgreSQL server of this session: `url`, and `url_of(database)`."""
    with _extra():
        from streams.testing.services import postgres, readable

    with readable(), postgres(tmp_path_factory.mktemp("streams-postgres")) as server:
        yield server


@pytest.fixture(scope="session")
def streams_kafka(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[KafkaBroker]:
    """A real Kafka broker of this session: `url` is its `host:port`."""
    with _extra():
        from streams.testing.services import kafka, readable

    with readable(), kafka(tmp_path_factory.mktemp("streams-kafka"), pytestconfig) as broker:
        yield broker


@pytest.fixture(scope="session")
def streams_template(streams_postgres: PostgresServer) -> str:
    """The URL of the migrated database that every test gets a copy of.

    Override it to add your own tables: a fixture of the same name and scope that takes this one,
    runs your migrations on the URL, closes its connections, and returns the URL.
    """
    with _extra():
        from streams.testing.services import migrated, readable

    with readable():
        return migrated(streams_postgres)


@pytest.fixture
def streams_database(streams_postgres: PostgresServer, streams_template: str) -> Iterator[str]:
    """The URL of a fresh migrated database of this test.

    It is for `streams.testing.persist` and for your own code.
    """
    with _extra():
        from streams.testing.services import copied, readable

    with readable(), copied(streams_postgres, streams_template) as url:
        yield url


@pytest.fixture
def streams_deployment(
    streams_kafka: KafkaBroker, streams_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """A relay and a worker that run your agents, both ready.

    They have topics of their own, and the database of this test.
    """
    with _extra():
        from streams.testing.deployment import Deployment
        from streams.testing.services import readable

    with readable():
        deployment = Deployment.on(
            streams_database, streams_kafka.url, tmp_path_factory.mktemp("streams-deployment")
        )
        with deployment:
            deployment.up()
            yield deployment


@contextmanager
def _extra() -> Iterator[None]:
    """What the extra `dev` brings is missed with one line that says so."""
    complaint = ""
    try:
        yield
    except ModuleNotFoundError as error:
        from streams.extras import extra_of, lacks

        if extra_of(error) is None:
            raise
        complaint = str(lacks("a fixture of outbox-streams", "dev", error))
    if complaint:
        pytest.fail(complaint, pytrace=False)
