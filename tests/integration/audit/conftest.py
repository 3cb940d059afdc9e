"""One real system in every state, made once; each test spoils a copy of its database."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

import streams.audit
from streams import operate
from streams.audit import examine
from streams.cli import cli
from streams.database import migrate
from streams.dev.kafka import KafkaBroker
from streams.dev.postgres import PostgresServer
from streams.registry import configured
from tests.conftest import World
from tests.fixtures.listed import ListedTopics, Log
from tests.fixtures.load import offsets
from tests.fixtures.publish import enqueue, payload
from tests.fixtures.simulation import Bench
from tests.fixtures.slots import drop_slot
from tests.integration.audit.spoil import GRACE, Report
from tests.integration.audit.three_ranges import ROWS, WIDTH

CHATS = 40
# This conversation's partition is behind: nobody may call its last messages lost.
SLOW = "slow"


def soon(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait for the condition, or fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.1)


@pytest.fixture(scope="session")
def system(
    postgres: PostgresServer,
    kafka: KafkaBroker,
    template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    """Three thousand messages gone through a real relay and a real worker.

    And one or more in every other state.
    """
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE audited TEMPLATE {template}")
    world = World(
        {
            "DATABASE_URL": postgres.url_of("audited"),
            "BROKER_URL": kafka.url,
            "STREAMS_RELAY__NAME": "audited",
            "STREAMS_WORKER__GROUP": "audited",
            "STREAMS_WORKER__SESSION_TIMEOUT": "6",
            "STREAMS_BROKER__TOPIC_PREFIX": "audited.",
        },
        tmp_path_factory.mktemp("audited"),
    )
    try:
        run(world)
    finally:
        for process in world.processes:
            process.kill()
    yield world
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        drop_slot(postgres.url, "audited")
        connection.execute("DROP DATABASE audited WITH (FORCE)")


def run(world: World) -> None:
    """Fill the world."""
    world.migrate()
    world.query(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no"
        " bombs'; END $$"
    )
    world.query(
        "CREATE TRIGGER refuse BEFORE INSERT ON chat_histories FOR EACH ROW"
        " WHEN (NEW.message_content LIKE '%bomb%') EXECUTE FUNCTION refuse()"
    )
    relay, worker = world.relay(), world.worker()
    messages = [payload(n, f"c{n % CHATS}", user_id=n % 3, tokens_consumed=n) for n in range(3000)]
    ids = enqueue(world.url, world.topic, messages)
    broken = enqueue(world.url, world.topic, [payload(n, f"c{n}", user_id="x") for n in range(6)])
    enqueue(
        world.url,
        world.topic,
        [payload(0, "b1", message="bomb"), *[payload(n, "b1") for n in range(5)]],
    )
    soon(
        lambda: (
            states(world, "consumed") == len(ids)
            and states(world, "dead") == 6
            and states(world, "parked") == 5
        )
    )
    mend = json.dumps(payload(1, "c0", user_id=7, message="mended \u00e9")).encode()
    with migrate.connection(world.settings) as connection:
        operator = operate.Operator("ann")
        operate.edit(connection, broken[0], mend, configured(world.settings), 900_000, operator)
        list(operate.discard(connection, [broken[1]], operator, operate.Choice()))
        list(operate.replay(connection, [broken[2]], operator, operate.Choice()))
    # A message that Kafka lost and that was sent again, as the sweep does it, after the first had
    # arrived after all.
    world.query(
        "INSERT INTO outbox (biz_type, topic, key, payload, resend_of)"
        " SELECT biz_type, topic, key, payload, id FROM outbox WHERE id = %s",
        ids[5],
    )
    soon(lambda: states(world, "consumed") == len(ids) + 1 and states(world, "replaying") == 0)
    [(newest,)] = world.query("SELECT max(id) FROM outbox")
    soon(lambda: floor(world) >= newest)
    soon(lambda: all_committed(world))
    worker.kill()
    last = enqueue(world.url, world.topic, [payload(n, SLOW) for n in range(3)])
    soon(lambda: floor(world) >= last[-1])
    relay.kill()
    soon(lambda: not (relay.running or worker.running))
    enqueue(world.url, world.topic, [payload(n, "c1") for n in range(4)])
    world.query("INSERT INTO outbox_direct SELECT nextval('outbox_id_seq')")
    world.query(
        "INSERT INTO chat_histories (outbox_id, user_id, chat_id, role, message_content,"
        " created_at) SELECT outbox_id, 1, 'direct', 'user', 'hi', now() FROM outbox_direct"
    )
    world.query("INSERT INTO agent_chats VALUES (1, 'direct', 1, now())")
    assert {"consumed", "retrying", "parked", "dead", "discarded"} == {
        row[0] for row in world.query("SELECT DISTINCT status FROM outbox_state")
    }


def states(world: World, status: str) -> int:
    """How many messages are in a status."""
    return int(world.query("SELECT count(*) FROM outbox_state WHERE status = %s", status)[0][0])


def all_committed(world: World) -> bool:
    """Whether the workers have committed past everything that is on the topic."""
    settings = world.settings
    committed, ends = offsets(
        settings.broker_url, settings.worker.group, world.topic, settings.topic.partitions
    )
    return bool(ends) and committed == ends


def floor(world: World) -> int:
    """The relay's floor."""
    return int(world.query("SELECT coalesce(max(floor), 0) FROM relay_position")[0][0])


@pytest.fixture
def copy(system: World, postgres: PostgresServer, name: str, tmp_path: Path) -> Iterator[World]:
    """The system as it was left, in a database to spoil."""
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE audited")
    yield World({**system.environ, "DATABASE_URL": postgres.url_of(name)}, tmp_path)
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def audit(copy: World, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Report]:
    """Run `streams audit` on the copy; its JSON, with the exit code."""
    monkeypatch.setattr(examine, "SECOND_LOOK", 0.2)

    def invoke(*arguments: str) -> Report:
        for name, value in copy.environ.items():
            monkeypatch.setenv(name, value)
        arguments = (
            "audit",
            "--json",
            "--grace",
            GRACE,
            "--age",
            GRACE,
            "--patience",
            "0",
            *arguments,
        )
        result = CliRunner().invoke(cli, arguments)
        assert isinstance(result.exception, SystemExit | None), result.exception
        assert result.exit_code in (0, 1), result.output
        report: Report = json.loads(result.stdout)
        assert result.exit_code == (0 if report["ok"] else 1)
        return report

    return invoke


@pytest.fixture
def bench(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Three ranges of messages, all persisted; no Kafka."""
    log = Log()

    def topics(*_: object) -> AbstractContextManager[ListedTopics]:
        return nullcontext(ListedTopics(log))

    monkeypatch.setattr(streams.audit, "Topics", topics)
    monkeypatch.setattr(examine, "WIDTH", WIDTH)
    with Bench(database) as bench:
        bench.note_topic(log.uuid)
        bench.connection.execute(
            "INSERT INTO outbox (biz_type, topic, key, payload)"
            " SELECT 'plain', 'notes', 'a', json_build_object('book', 'a', 'note', n::text)"
            f" FROM generate_series(1, {ROWS}) AS n"
        )
        bench.connection.execute(
            'INSERT INTO outbox_state (outbox_id, status, partition, "offset", applied)'
            " SELECT id, 'consumed', 0, id, nextval('outbox_applied') FROM outbox ORDER BY id"
        )
        bench.connection.execute(
            "INSERT INTO notes (outbox_id, book, note)"
            " SELECT id, 'a', payload->>'note' FROM outbox ORDER BY id"
        )
        log.partitions[0].extend([None] * (ROWS + 1))  # type: ignore[list-item]
        log.committed[0] = ROWS + 1
        bench.raise_floor(ROWS)
        yield bench
