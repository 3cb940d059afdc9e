"""What stops a relay, a worker and `streams up` from starting.

One clear line, and the exit code of the design.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from confluent_kafka import Consumer

from streams.broker import kafka as topics
from streams.dev.kafka import KafkaBroker
from streams.dev.ports import free_port
from streams.dev.postgres import PostgresServer
from streams.errors import UsageError
from streams.registry import configured
from streams.settings import load
from streams.testing.services import copied
from streams.worker import group_entry, preflight
from tests.conftest import World
from tests.fixtures.command import Answer
from tests.fixtures.forks import ForkedProcess, Forks
from tests.fixtures.publish import enqueue, payload, publish

RELAY = ("streams", "relay")
WORKER = ("faust", "-q", "-A", "streams.app", "worker")
BOTH = pytest.mark.parametrize("command", [RELAY, WORKER], ids=["relay", "worker"])

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def untouched(
    postgres: PostgresServer,
    kafka: KafkaBroker,
    template: str,
    forks: Forks,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    """A world for commands that end before they look at its database, or only look."""
    with copied(postgres, template) as url:
        environ = {
            "DATABASE_URL": url,
            "BROKER_URL": kafka.url,
            "STREAMS_RELAY__NAME": "untouched",
            "STREAMS_WORKER__GROUP": "untouched",
            "STREAMS_BROKER__TOPIC_PREFIX": "untouched.",
        }
        yield World(environ, tmp_path_factory.mktemp("untouched"), forks=forks)


@pytest.fixture
def refused(request: pytest.FixtureRequest, tmp_path: Path) -> Refused:
    """Run a command that must not start, in the test's world if there is one; the line it says."""
    name = "world" if "world" in request.fixturenames else "untouched"
    world: World = request.getfixturevalue(name)

    def run(command: tuple[str, ...], code: int, *, anew: bool = False, **environ: str) -> str:
        # A worker of somebody else's may have the default port.
        own = {"STREAMS_WEB__PORT": str(free_port())}
        merged = {**os.environ, **own, **world.environ, **environ}
        clean = {name: value for name, value in merged.items() if value}
        ended = (_started if anew else _forked)(world, command, clean, tmp_path)
        assert ended.code == code, ended.out + ended.error
        # Beside what it did: a relay without a broker makes room for the business all the same.
        said = [line for line in ended.error.splitlines() if " INFO " not in line]
        assert (ended.out, len(said)) == ("", 1), ended.out + ended.error
        assert said[0].startswith("streams: ")
        return said[0].removeprefix("streams: ")

    return run


def _forked(world: World, command: tuple[str, ...], environ: dict[str, str], place: Path) -> Answer:
    assert world.forks is not None
    out, error = place / "out", place / "error"
    process = ForkedProcess(world.forks, command, out, environ, error=error).run_in(place)
    process.launch()
    code = asyncio.run(process.finish(120))
    return Answer(code, out.read_text(), error.read_text())


def _started(_: World, command: tuple[str, ...], environ: dict[str, str], place: Path) -> Answer:
    program = str(Path(sys.executable).with_name(command[0]))
    ended = subprocess.run(
        [program, *command[1:]],
        cwd=place,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return Answer(ended.returncode, ended.stdout, ended.stderr)


@BOTH
def test_without_a_database(refused: Refused, command: tuple[str, ...]) -> None:
    """The programs that a user starts, with every import of theirs; the other tests fork."""
    said = refused(command, 2, anew=True, DATABASE_URL="")
    assert (
        said
        == "no database: set DATABASE_URL or database.url in faust.yml, or run `streams up` here"
    )


@BOTH
def test_without_a_broker(world: World, refused: Refused, command: tuple[str, ...]) -> None:
    world.migrate()
    said = refused(command, 2, BROKER_URL="")
    assert said == "no broker: set BROKER_URL or broker.url in faust.yml, or run `streams up` here"


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.1.2.3"])
def test_pages_for_everybody(world: World, refused: Refused, address: str) -> None:
    world.migrate()
    said = refused((*WORKER, "--web-bind", address), 2)
    assert said.startswith(
        f"--web-bind is {address!r}: expected a loopback address (127.0.0.1, ::1, localhost) unless"
    )


WRONG = [
    (
        "STREAMS_WORKER__LOCK_TIMEOUT",
        "60",
        "setting 'worker.lock_timeout' is 60.0: expected less than worker.handler_",
    ),
    (
        "STREAMS_BROKER__SASL_MECHANISM",
        "PLAIN",
        "setting 'broker.sasl_mechanism' is 'PLAIN': expected one exactly",
    ),
    (
        "STREAMS_WORKER__RUN_RECORDS",
        "many",
        "setting 'worker.run_records' is 'many': expected a whole number",
    ),
    ("STREAMS_WEB__PROT", "1", "unknown setting 'web.prot': expected one of host, port"),
    ("STREAMS_AGENTS", "[nowhere]", "nowhere"),
    (
        "STREAMS_WEB__HOST",
        "0.0.0.0",
        "setting 'web.host' is '0.0.0.0': expected a loopback address",
    ),
    ("STREAMS_CONFIG", "gone.yml", "settings file gone.yml does not exist"),
]


@BOTH
@pytest.mark.parametrize(("variable", "value", "line"), WRONG, ids=[case[0] for case in WRONG])
def test_settings_that_cannot_work(
    refused: Refused, command: tuple[str, ...], variable: str, value: str, line: str
) -> None:
    assert line in refused(command, 2, **{variable: value})


@BOTH
def test_a_database_that_does_not_answer(refused: Refused, command: tuple[str, ...]) -> None:
    said = refused(command, 3, DATABASE_URL="postgresql://me:canary@127.0.0.1:1/x")
    assert said.startswith("PostgreSQL at postgresql://me:***@127.0.0.1:1/x cannot be reached: ")
    assert "canary" not in said


@BOTH
def test_a_database_that_does_not_exist(
    refused: Refused, command: tuple[str, ...], world: World
) -> None:
    said = refused(command, 3, DATABASE_URL=world.url.rpartition("/")[0] + "/nowhere")
    assert 'database "nowhere" does not exist' in said


@BOTH
def test_a_broker_that_does_not_answer(
    refused: Refused, command: tuple[str, ...], world: World
) -> None:
    world.migrate()
    said = refused(command, 3, BROKER_URL="127.0.0.1:1")
    assert said.startswith("Kafka at 127.0.0.1:1 cannot be reached: ")


@BOTH
def test_a_database_that_was_never_migrated(
    refused: Refused, command: tuple[str, ...], world: World
) -> None:
    world.query("DROP TABLE outbox_streams_version")
    said = refused(command, 2)
    assert said.startswith("the database is at revision (none), expected ")
    assert said.endswith(": run `streams migrate`")


@pytest.mark.parametrize(
    "command", [RELAY, WORKER, ("streams", "migrate"), ("streams", "status")], ids=str
)
def test_a_newer_database_that_took_something_away(
    refused: Refused, command: tuple[str, ...], world: World
) -> None:
    world.query("UPDATE outbox_streams_version SET version_num = '9999'")
    world.query("COMMENT ON TABLE outbox_streams_version IS '9999'")
    said = refused(command, 2)
    assert said.startswith("the database is at revision 9999, which outbox-streams ")
    assert said.endswith(": install a newer version")


def test_a_missing_publication(refused: Refused, world: World) -> None:
    world.migrate()
    world.query("DROP PUBLICATION outbox_pub")
    assert (
        refused(RELAY, 2, STREAMS_RELAY__MODE="cdc")
        == "publication outbox_pub does not exist: run `streams migrate`"
    )


def test_a_missing_slot(refused: Refused, world: World, name: str) -> None:
    world.migrate()
    world.query("SELECT pg_drop_replication_slot(%s)", name)
    assert (
        refused(RELAY, 2, STREAMS_RELAY__MODE="cdc")
        == f"replication slot {name} does not exist: run `streams migrate`"
    )


@BOTH
def test_a_topic_with_another_partition_count(
    refused: Refused, command: tuple[str, ...], world: World
) -> None:
    world.migrate()
    topics.prepare_topics(world.settings, [world.topic])
    said = refused(command, 2, STREAMS_TOPIC__PARTITIONS="5")
    assert said.startswith(
        f"topic '{world.topic}' has 8 partitions, faust.yml says 5: set topics.chat-history.part"
    )


@pytest.fixture
def taken() -> Iterator[str]:
    """A port that somebody else listens on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield str(other.getsockname()[1])


def test_a_web_port_that_is_taken(refused: Refused, taken: str) -> None:
    said = refused(WORKER, 2, STREAMS_WEB__PORT=taken)
    assert said.startswith(
        f"setting 'web.port' is {taken}: expected a port of 127.0.0.1 to listen on (Address already"
    )


def test_a_role_without_rights(refused: Refused, world: World, name: str) -> None:
    """The worker's first statement is refused: that is no crash either."""
    world.query(f"CREATE ROLE {name} LOGIN")
    try:
        said = refused(WORKER, 2, DATABASE_URL=world.url.replace("postgres@", f"{name}@"))
    finally:
        world.query(f"DROP ROLE {name}")
    assert "permission denied for table" in said


def test_messages_that_nobody_here_would_work(world: World) -> None:
    """An agent that was left out would stop silently, with what was enqueued for it."""
    world.environ["STREAMS_RELAY__MODE"] = "poll"
    world.migrate()
    topics.prepare_topics(world.settings, [world.topic])
    without = load(
        environ={
            **world.environ,
            "STREAMS_AGENTS": "[]",
            "STREAMS_TOPICS": "{seed: {format: envelope}}",
        }
    )
    registry = configured(without)
    preflight.refuse_unserved(without, registry)
    [outbox_id] = enqueue(world.url, world.topic, [payload(1, "c1")])
    expected = (
        rf"messages of biz_type chat_history_persist wait on topic {world.topic},"
        r" which nobody reads, and no agent here"
        r" knows it: add its package to `agents`, or run `streams biz-types retire"
        r" chat_history_persist`"
    )
    with pytest.raises(UsageError, match=expected):
        preflight.refuse_unserved(without, registry)
    preflight.refuse_unserved(world.settings, configured(world.settings))
    # Once it is published only Kafka knows that nobody has read it.
    world.query(
        "INSERT INTO relay_position (name, mode, floor) VALUES ('r', 'poll', %s)", outbox_id
    )
    preflight.refuse_unserved(without, registry)
    publish(world.settings.broker_url, world.topic, world.url, [outbox_id])
    with pytest.raises(UsageError, match=expected):
        preflight.refuse_unserved(without, registry)
    world.query("UPDATE outbox_biz_types SET retired_at = now()")
    preflight.refuse_unserved(without, registry)
    nothing = load(environ={**world.environ, "STREAMS_AGENTS": "[]"})
    with pytest.raises(
        UsageError, match=r"setting 'agents' is \[\]: expected a package with an agent in it"
    ):
        preflight.refuse_unserved(nothing, configured(nothing))


def stop(message: str, *, reason: str) -> NoReturn:
    """Instead of the end of the process."""
    raise InterruptedError(f"{message}: {reason}")


def test_a_topic_that_the_group_reads_for_another_database(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two deployments with default names: each would reject what was sent to the other."""
    monkeypatch.setattr(group_entry, "LEFT_BEHIND_SECONDS", 0.0)
    world.environ["STREAMS_WORKER__SESSION_TIMEOUT"] = "1"
    settings, registry = world.settings, configured(world.settings)
    group, elsewhere = settings.worker.group, f"{world.topic}-2"
    topics.prepare_topics(settings, [world.topic, elsewhere])
    # Two that start at once: each asks before the other has joined.
    early = group_entry.GroupEntry(settings, registry)
    ours = early.enter()
    assert re.fullmatch(r"outbox-streams\.\d+\.\d+\.\d+", ours)
    another = "outbox-streams.1.2.3"
    # A worker of a release before has a name that says nothing.
    for name, topic in (
        (ours, world.topic),
        ("faust-0.15.3", world.topic),
        (another, elsewhere),
        (another, world.topic),
    ):
        member = Consumer(topics.client(settings, client_id=name, group_id=group))
        member.subscribe([topic])
        until = time.monotonic() + 30
        while not member.assignment():
            assert time.monotonic() < until
            member.poll(0.1)
        try:
            if (name, topic) != (another, world.topic):
                entry = group_entry.GroupEntry(settings, registry)
                assert entry.enter() == ours
                asyncio.run(entry.confirmed())
                continue
            line = (
                f"consumer group {group} reads topic {topic} for the outbox of another database"
                " (1/2/3): set broker.topic_prefix and worker.group to what no other deployment on"
                " this broker has"
            )
            with pytest.raises(UsageError, match=re.escape(line)):
                group_entry.GroupEntry(settings, registry).enter()
            monkeypatch.setattr(group_entry, "fail_stop", stop)
            with pytest.raises(InterruptedError, match=re.escape(line)):
                asyncio.run(early.confirmed())
        finally:
            member.close()
