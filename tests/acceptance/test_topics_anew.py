"""Kafka changes under relay and workers: topics vanish, return, shrink, or it is another Kafka.

All flows again, by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from streams import audit
from streams.broker import kafka
from streams.database import migrate
from streams.dev.kafka import KafkaBroker
from streams.dev.ports import free_port
from streams.dev.process import Process
from streams.registry import configured
from tests.conftest import Eventually, World
from tests.fixtures.load import Flow
from tests.fixtures.proxy import Proxy
from tests.fixtures.publish import enqueue, payload

RESTART = 70


class Kept:
    """One relay and one worker that a supervisor keeps running.

    `ended` are the statuses they ended with, `reasons` what workers said of why they are not ready.
    """

    def __init__(self, world: World) -> None:
        world.migrate()
        self.world = world
        self._starts = {"relay": world.relay, "worker": world.worker}
        self._running: dict[str, Process] = {name: start() for name, start in self._starts.items()}
        self.ended: dict[str, list[int | None]] = {name: [] for name in self._starts}
        self.reasons: set[str] = set()

    def tend(self) -> bool:
        """Start again what has ended."""
        for name, process in self._running.items():
            if not process.running:
                self.ended[name].append(process.returncode)
                self._running[name] = self._starts[name]()
        self.reasons.update(
            reason for answer in self.world.health() for reason in answer["reasons"]
        )
        return True

    def goes_on(self) -> Callable[[], bool]:
        """Whether a message that is sent now is persisted, as well as everything before it."""
        self._number = getattr(self, "_number", 0) + 1
        enqueue(
            self.world.url, self.world.topic, [payload(self._number, f"k{n}") for n in range(40)]
        )
        return lambda: self.tend() and self.world.query(LEFT) == [(0,)]


LEFT = """SELECT count(*) FROM outbox LEFT JOIN chat_histories ON outbox_id = outbox.id
WHERE resend_of IS NULL AND outbox_id IS NULL"""


def delete(world: World, *names: str) -> None:
    admin = AdminClient(kafka.client(world.settings))
    for future in admin.delete_topics(list(names)).values():
        future.result(10)


def make(world: World, name: str, partitions: int) -> None:
    admin = AdminClient(kafka.client(world.settings))
    [future] = admin.create_topics([NewTopic(name, partitions, 1)]).values()
    future.result(10)


def topics(world: World) -> dict[str, int]:
    """How many partitions each topic of this world has."""
    admin = AdminClient(kafka.client(world.settings))
    prefix = world.settings.worker.group
    listed = admin.list_topics(timeout=10).topics
    return {
        name: len(topic.partitions) for name, topic in listed.items() if name.startswith(prefix)
    }


def report(world: World) -> audit.Report:
    settings = world.settings
    with migrate.connection(settings) as connection:
        return audit.audit(connection, settings, configured(settings), patience=20)


@pytest.mark.long
async def test_a_topic_deleted_and_made_again_under_load(
    world: World, eventually: Eventually
) -> None:
    """By a person at once, and then by nobody but us."""
    kept = Kept(world)
    flow = Flow(world.url, world.topic, pause=0.05, conversations=50)
    flow.start()
    await eventually(
        lambda: world.query("SELECT count(*) > 500 FROM chat_histories") == [(True,)], 60
    )
    delete(world, world.topic)
    make(world, world.topic, 8)
    await eventually(lambda: kept.tend() and kept.ended["worker"] == [RESTART], 30)
    [(newest,)] = world.query("SELECT max(id) FROM outbox")
    later = "SELECT count(*) > 0 FROM chat_histories WHERE outbox_id > %s"
    await eventually(lambda: kept.tend() and world.query(later, newest) == [(True,)], 60)
    delete(world, world.topic)
    await eventually(lambda: kept.tend() and kept.ended["worker"] == [RESTART] * 2, 30)
    flow.finish()
    await eventually(lambda: kept.tend() and world.query(LEFT) == [(0,)], 60, every=0.2)
    assert kept.ended == {"relay": [], "worker": [RESTART] * 2}
    assert any(world.topic in reason for reason in kept.reasons)
    assert world.query("SELECT count(*) - count(DISTINCT outbox_id) FROM chat_histories") == [(0,)]
    audited = report(world)
    assert not audited.wrong, audited.wrong
    assert not audited.lagging


@pytest.mark.long
async def test_a_broker_that_makes_what_it_is_asked_for_and_another_cluster(
    world: World, tmp_path: Path, eventually: Eventually
) -> None:
    creating = {"auto.create.topics.enable": "true", "num.partitions": "1"}
    with Proxy("tcp://nowhere:1") as bootstrap:
        async with KafkaBroker(tmp_path / "first", settings=creating) as broker:
            bootstrap.lead_to(broker.url)
            world.environ["BROKER_URL"] = f"127.0.0.1:{bootstrap.port}"
            kept = Kept(world)
            await eventually(kept.goes_on(), 60)
            ours = topics(world)
            # One by one: those that are made from PostgreSQL, and the one that carries messages.
            for name in (
                f"{world.topic}-retry",
                next(each for each in ours if each.endswith("retries-changelog")),
            ):
                delete(world, name)
                await eventually(lambda: kept.tend() and topics(world) == ours, 30)
                await eventually(kept.goes_on(), 60)
            assert kept.ended == {"relay": [], "worker": [RESTART] * 2}
            delete(world, world.topic)
            make(world, world.topic, 1)
            await eventually(kept.goes_on(), 60)
            assert topics(world) == ours
            ends = len(kept.ended["worker"])
        for directory, reason in (("first", "at other addresses"), ("second", "another cluster")):
            async with KafkaBroker(tmp_path / directory, port=free_port()) as broker:
                bootstrap.lead_to(broker.url)
                await eventually(kept.goes_on(), 90)
                ends += 1
                assert kept.ended == {"relay": [], "worker": [RESTART] * ends}
                assert topics(world) == ours
                assert any(
                    reason in log.read_text() for log in world.directory.glob("faust-*.log")
                ), reason
                audited = report(world)
                assert not audited.wrong, audited.wrong
