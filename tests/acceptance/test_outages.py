"""The database, the broker or the network away while messages flow.

Nobody is charged, everybody comes back by himself.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
import pytest
from psycopg import sql

from streams.dev.kafka import KafkaBroker
from streams.dev.postgres import PostgresServer
from streams.dev.process import Process
from streams.testing.services import copied
from tests.conftest import Eventually, World
from tests.fixtures.load import Flow, check_effects, offsets, unsettled
from tests.fixtures.proxy import Proxy
from tests.fixtures.publish import enqueue, payload

AWAY = 7.0  # seconds: longer than the session timeout of 6 s
LONG = pytest.param(150.0, marks=[pytest.mark.long, pytest.mark.timeout(900)])
RUN_RECORDS, TRANSACTIONS = 500, 2
# A worker's pool, and those of its replaced connections that the server has not noticed to be gone.
MOST_CONNECTIONS = 2 * (TRANSACTIONS + 2)
GROWTH = 60 << 20
LOUD = ("WARNING", "ERROR", "CRITICAL")


@dataclass
class Running:
    """A relay and two workers at work.

    The first worker and the relay reach the database through proxies.
    """

    world: World
    role: str
    relay_net: Proxy
    worker_net: Proxy
    processes: dict[str, Process]

    @property
    def logs(self) -> dict[str, Path]:
        """Where each process reports."""
        files = sorted(
            self.world.directory.glob("*.log"), key=lambda file: int(file.stem.rpartition("-")[2])
        )
        return dict(zip(self.processes, files, strict=True))

    def memory(self) -> dict[str, int]:
        """Resident bytes of each process."""
        return {
            name: psutil.Process(one.pid).memory_info().rss for name, one in self.processes.items()
        }

    def connections(self) -> int:
        """How many connections the workers have."""
        [(count,)] = self.world.query(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = %s", self.role
        )
        return int(count)

    def reasons(self) -> list[list[str]]:
        """Why each worker is not ready."""
        return [answer["reasons"] for answer in self.world.health()]

    def ready(self) -> bool:
        """Whether both workers are."""
        return self.reasons() == [[], []]


@pytest.fixture(scope="module")
def running(
    postgres: PostgresServer,
    kafka: KafkaBroker,
    template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    """One deployment for every outage here.

    What the one before left behind is what the next one meets.
    """
    name = f"outages-{secrets.token_hex(3)}"
    role = name.replace("-", "_")
    with (
        copied(postgres, template) as url,
        Proxy(url) as relay_net,
        Proxy(url) as worker_net,
    ):
        world = World(_environ(url, kafka.url, name), tmp_path_factory.mktemp("outages"))
        world.migrate()
        _create_role(world, role)
        try:
            # The servers' own URL with another user: the second worker is connected to it directly.
            direct = url.replace("postgres@", f"{role}@", 1)
            processes = {
                "relay": world.relay(DATABASE_URL=relay_net.url("postgres")),
                "worker-1": world.worker(DATABASE_URL=worker_net.url(role)),
                "worker-2": world.worker(DATABASE_URL=direct),
            }
            yield Running(world, role, relay_net, worker_net, processes)
        finally:
            for process in world.processes:
                process.kill()
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s",
                    [role],
                )
                connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role)))
                connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


@pytest.fixture
async def flowing(running: Running, eventually: Eventually) -> AsyncIterator[Flow]:
    """Messages flow through all of it, before the outage and during it.

    The test finishes the flow with `recovered`.
    """
    # Others may write where the database is read-only for relay and workers: a backlog waits.
    flow = Flow(
        running.world.url + "?options=-cdefault_transaction_read_only%3Doff",
        running.world.topic,
        pause=0.05,
    )
    await eventually(running.ready, 60)
    flow.start()
    await eventually(lambda: flow.sent and running.world.query(_ABOUT_THERE) == [(True,)], 30)
    yield flow
    flow.finish()
    # For a test that failed: what is left, who waits for whom, and what everybody said last.
    for statement in (_LEFT, _SESSIONS):
        for row in running.world.query(statement):
            sys.stdout.write(f"{row}\n")
    sys.stdout.write(f"{running.world.health()}\n")
    for name, log in running.logs.items():
        lines = log.read_text().splitlines()[-25:]
        sys.stdout.write("\n".join([f"--- {name}", *lines, ""]))


async def recovered(running: Running, flow: Flow, eventually: Eventually) -> None:
    """Everything is persisted once and in order, without a charge, by the same processes."""
    world = running.world
    await eventually(running.ready, 60, every=0.2)
    count = flow.finish()
    [(others,)] = world.query("SELECT count(*) FROM outbox WHERE key NOT LIKE 'c%'")
    await eventually(lambda: unsettled(world.query) == 0, 90, every=0.2)
    check_effects(world.query, count + others)
    charged = (
        "SELECT count(*) FROM outbox_state JOIN outbox ON id = outbox_id WHERE outbox.key LIKE 'c%'"
    )
    assert world.query(f"{charged} AND (attempts <> 0 OR status <> 'consumed')") == [(0,)]
    assert world.query("SELECT count(*) FROM outbox_rejects") == [(0,)]
    await eventually(lambda: _at_the_end(world), 30, every=0.5)
    assert all(process.running for process in running.processes.values())
    assert running.connections() <= 2 * MOST_CONNECTIONS


async def test_the_database_killed_and_restarted_at_once(
    running: Running, flowing: Flow, postgres: PostgresServer, eventually: Eventually
) -> None:
    for _ in range(2):
        before = flowing.sent
        postgres.kill()
        await postgres.restart()
        await eventually(lambda before=before: flowing.sent > before + 200, 30)
    await recovered(running, flowing, eventually)


@pytest.mark.parametrize("seconds", [AWAY, LONG])
async def test_the_database_away(
    running: Running,
    flowing: Flow,
    postgres: PostgresServer,
    eventually: Eventually,
    seconds: float,
) -> None:
    with calm(running, seconds):
        postgres.kill()
        try:
            await eventually(lambda: _both_say(running, _DATABASE), 30)
            await asyncio.sleep(seconds)
            await eventually(lambda: len(running.reasons()) == 2)
        finally:
            await postgres.restart()
        await recovered(running, flowing, eventually)


@pytest.mark.parametrize("seconds", [AWAY, LONG])
async def test_the_broker_away(
    running: Running, flowing: Flow, kafka: KafkaBroker, eventually: Eventually, seconds: float
) -> None:
    with calm(running, seconds):
        kafka.kill()
        try:
            await asyncio.sleep(seconds)
        finally:
            await kafka.restart()
        await recovered(running, flowing, eventually)


@pytest.mark.long
async def test_a_failover_to_a_server_that_is_read_only(
    running: Running, flowing: Flow, eventually: Eventually
) -> None:
    """Of the workers first: while the relay goes on there is something to write for each."""
    workers, relay = [running.logs[f"worker-{number}"] for number in (1, 2)], running.logs["relay"]
    with calm(running, AWAY):
        try:
            _fail_over(running, "ROLE {role} IN DATABASE {database}", read_only=True)
            await eventually(
                lambda: all("sqlstate=25006" in log.read_text() for log in workers), 20
            )
            _fail_over(running, "DATABASE {database}", read_only=True)
            await eventually(lambda: "read-only" in relay.read_text(), 20)
            await asyncio.sleep(AWAY / 3)
        finally:
            _fail_over(running, "DATABASE {database}", read_only=False)
            _fail_over(running, "ROLE {role} IN DATABASE {database}", read_only=False)
        await recovered(running, flowing, eventually)


@pytest.mark.parametrize("seconds", [pytest.param(AWAY / 2, marks=pytest.mark.long), LONG])
async def test_a_grant_revoked_and_given_back(
    running: Running, flowing: Flow, eventually: Eventually, seconds: float
) -> None:
    """The relay goes on meanwhile.

    A backlog waits in Kafka, and must not wait in a worker's memory.
    """
    role = sql.Identifier(running.role)
    with calm(running, seconds), psycopg.connect(running.world.url, autocommit=True) as admin:
        admin.execute(sql.SQL("REVOKE INSERT ON chat_histories FROM {}").format(role))
        await eventually(lambda: "sqlstate=42501" in running.logs["worker-2"].read_text(), 30)
        before = flowing.sent
        await asyncio.sleep(seconds)
        # A busy machine needs longer for as many.
        await eventually(lambda: flowing.sent > before + 1000, 60)
        admin.execute(sql.SQL("GRANT INSERT ON chat_histories TO {}").format(role))
        await recovered(running, flowing, eventually)


@pytest.mark.parametrize("seconds", [AWAY, LONG])
async def test_a_network_that_swallows_everything(
    running: Running, flowing: Flow, eventually: Eventually, seconds: float
) -> None:
    """No reset, no goodbye, and the peer's kernel acknowledges every byte.

    Nothing ever ends by itself.
    """
    with calm(running, seconds):
        running.worker_net.blackhole()
        running.relay_net.blackhole()
        await eventually(lambda: [_DATABASE] in running.reasons(), 20)
        await asyncio.sleep(seconds)
        running.worker_net.heal()
        running.relay_net.heal()
        await recovered(running, flowing, eventually)


async def test_a_network_that_resets_connections(
    running: Running, flowing: Flow, eventually: Eventually
) -> None:
    with calm(running, AWAY):
        for _ in range(10):
            before = flowing.sent
            running.worker_net.reset()
            running.relay_net.reset()
            await eventually(lambda before=before: flowing.sent > before + 50, 30)
        await recovered(running, flowing, eventually)


async def test_commits_whose_answer_is_lost(
    running: Running, flowing: Flow, eventually: Eventually
) -> None:
    with calm(running, AWAY):
        running.worker_net.cut_commits(10)
        await eventually(lambda: running.worker_net.commits_left == 0, 60)
        await recovered(running, flowing, eventually)


@pytest.mark.long
@pytest.mark.parametrize("count", [200, 2000])
async def test_retries_due_during_an_outage_return_in_portions(
    running: Running, flowing: Flow, postgres: PostgresServer, eventually: Eventually, count: int
) -> None:
    """So many conversations wait for the same moment.

    What arrives meanwhile does not wait for them.
    """

    def failed() -> int:
        said = [line for log in running.logs.values() for line in log.read_text().splitlines()]
        return sum(
            int(found[1])
            for line in said
            if (found := re.search(r"error_code=P0001 count=(\d+)", line))
        )

    world, before = running.world, failed()
    world.query(_NOT_YET)
    world.query(
        "CREATE TRIGGER not_yet BEFORE INSERT ON chat_histories FOR EACH ROW EXECUTE FUNCTION"
        " not_yet()"
    )
    herd = enqueue(
        world.url, world.topic, [payload(n, f"h{n}", message="herd") for n in range(count)]
    )
    waiting = "SELECT count(*) FROM outbox_state WHERE status = 'retrying'"
    await eventually(lambda: world.query(waiting) == [(count,)], 60 + count / 10, every=0.2)
    again = (
        "UPDATE outbox_state SET next_retry_at = now() + interval '{}' WHERE status = 'retrying'"
    )
    soon = f"{waiting} AND next_retry_at < now() + interval '30 minutes'"

    def rested() -> bool:
        # None is due, and none is being tried: what is set aside meanwhile is due soon again.
        world.query(again.format("1 hour"))
        return _no_retry_in_flight(world) and world.query(soon) == [(0,)]

    await eventually(rested, 60 + count / 10, every=0.2)
    world.query("DROP TRIGGER not_yet ON chat_histories")
    attempts = _attempts(world, herd)
    await eventually(lambda: failed() == before + sum(attempts.values()))
    world.query(again.format("5 s"))
    with calm(running, AWAY):
        postgres.kill()
        try:
            await asyncio.sleep(AWAY / 2)
        finally:
            await postgres.restart()
        fresh = enqueue(world.url, world.topic, [payload(n, f"fresh{n}") for n in range(50)])
        most = 0

        def written() -> bool:
            nonlocal most
            most = max(most, running.connections())
            return len(_attempts(world, fresh)) == len(fresh)

        await eventually(written, 60)
        await recovered(running, flowing, eventually)
    assert most <= 2 * MOST_CONNECTIONS
    assert _attempts(world, herd) == attempts
    sizes = (
        "SELECT count(*) AS size FROM chat_histories WHERE message_content = 'herd' GROUP BY xmin"
    )
    [(portion,)] = world.query(f"SELECT max(size) FROM ({sizes}) AS portions")
    assert portion <= RUN_RECORDS


def _both_say(running: Running, reason: str) -> bool:
    reasons = running.reasons()
    return len(reasons) == 2 and all(reason in why for why in reasons)


def _no_retry_in_flight(world: World) -> bool:
    return not any(
        partition["in_flight"]
        for worker in world.health()
        for topic, partitions in worker["positions"].items()
        if topic.endswith("-retry")
        for partition in partitions.values()
    )


_DATABASE = "the database does not answer"
_LEFT = """
SELECT outbox.id, outbox.key, created_at, status, attempts, next_retry_at, s.updated_at, now()
FROM outbox LEFT JOIN outbox_state AS s ON outbox_id = id
WHERE status IS DISTINCT FROM 'consumed' ORDER BY id LIMIT 20
"""
_SESSIONS = """
SELECT pid, usename, state, wait_event, now() - xact_start, pg_blocking_pids(pid), left(query, 80)
FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
_NOT_YET = """
CREATE OR REPLACE FUNCTION not_yet() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.message_content = 'herd' THEN
        RAISE EXCEPTION 'not yet' USING DETAIL = NEW.outbox_id;
    END IF;
    RETURN NEW;
END $$
"""
_ABOUT_THERE = "SELECT count(*) > 0 FROM outbox_state"


class calm:
    """An outage of so many seconds leaves memory where it was.

    It is told a few times, not thousands.
    """

    def __init__(self, running: Running, seconds: float) -> None:
        self._running, self._seconds = running, seconds

    def __enter__(self) -> None:
        self._began = time.monotonic()
        self._memory = self._running.memory()
        self._sizes = {name: file.stat().st_size for name, file in self._running.logs.items()}

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        for name, size in self._running.memory().items():
            assert size < self._memory[name] + GROWTH, (
                f"{name} grew from {self._memory[name]:,} to {size:,}"
            )
        for name, file in self._running.logs.items():
            said = file.read_bytes()[self._sizes[name] :].decode().splitlines()
            loud = [line for line in said if line.split(" ")[1:2] and line.split(" ")[1] in LOUD]
            # What takes longer on a busy machine may be told for longer.
            assert len(loud) < 25 + max(self._seconds, time.monotonic() - self._began), (
                f"{name} said {len(loud)} loud lines, such as {loud[:5]}"
            )


def _attempts(world: World, ids: list[int]) -> dict[int, int]:
    return dict(
        world.query("SELECT outbox_id, attempts FROM outbox_state WHERE outbox_id = ANY(%s)", ids)
    )


def _environ(url: str, broker: str, name: str) -> dict[str, str]:
    return {
        "DATABASE_URL": url,
        "BROKER_URL": broker,
        "STREAMS_RELAY__NAME": name.replace("-", "_"),
        "STREAMS_WORKER__GROUP": name,
        "STREAMS_WORKER__SESSION_TIMEOUT": "6",
        "STREAMS_WORKER__HANDLER_TIMEOUT": "6",
        "STREAMS_WORKER__LOCK_TIMEOUT": "3",
        "STREAMS_WORKER__TRANSACTIONS": str(TRANSACTIONS),
        "STREAMS_WORKER__RUN_RECORDS": str(RUN_RECORDS),
        "STREAMS_DATABASE__CONNECT_TIMEOUT": "3",
        "STREAMS_BROKER__TOPIC_PREFIX": f"{name}.",
    }


def _create_role(world: World, role: str) -> None:
    with psycopg.connect(world.url, autocommit=True) as connection:
        for statement in (
            "CREATE ROLE {} LOGIN",
            "GRANT USAGE ON SCHEMA public TO {}",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {}",
            "GRANT USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA public TO {}",
        ):
            connection.execute(sql.SQL(statement).format(sql.Identifier(role)))


def _fail_over(running: Running, whose: str, *, read_only: bool) -> None:
    """What clients see of a failover.

    Every connection ends, and the server they find next takes writes or does not.
    """
    with psycopg.connect(running.world.url, autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        names = {
            "role": sql.Identifier(running.role),
            "database": sql.Identifier(connection.info.dbname),
        }
        alter = sql.SQL(
            f"ALTER {whose} SET default_transaction_read_only = {'on' if read_only else 'off'}"
        )
        connection.execute(alter.format(**names))
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def _at_the_end(world: World) -> bool:
    settings = world.settings
    committed, ends = offsets(
        settings.broker_url, settings.worker.group, world.topic, settings.topic.partitions
    )
    return bool(ends) and committed == ends
