"""A transactional producer on a topic that workers consume.

What it aborts never happened, its markers are no lag.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest
from confluent_kafka import Producer

from streams import audit
from streams.database import migrate
from streams.registry import configured
from tests.conftest import Eventually, World
from tests.fixtures.load import offsets
from tests.fixtures.notes import NOTE
from tests.fixtures.seed import Seed


class Transactions:
    """Envelopes of one book, a transaction at a time."""

    def __init__(self, seed: Seed) -> None:
        self._topic = seed.topic
        broker = seed.world.settings.broker_url
        options = {"partitioner": "murmur2_random", "transactional.id": seed.topic, "log_level": 0}
        self.producer = Producer({"bootstrap.servers": broker} | options)
        self.producer.init_transactions(20)

    @contextmanager
    def open(self, *ids: int) -> Iterator[None]:
        """Within this the messages are on the topic, and not committed."""
        self.producer.begin_transaction()
        for outbox_id in ids:
            self.producer.produce(self._topic, envelope(outbox_id), "a")
        self.producer.flush(20)
        yield

    def commit(self, *ids: int) -> None:
        """These messages."""
        with self.open(*ids):
            self.producer.commit_transaction(20)

    def abort(self, *ids: int) -> None:
        """None of these messages."""
        with self.open(*ids):
            self.producer.abort_transaction(20)


def envelope(outbox_id: int) -> bytes:
    payload = {"book": "a", "note": f"a{outbox_id}"}
    return orjson.dumps({"outbox_id": outbox_id, "biz_type": NOTE, "payload": payload})


def consumed(seed: Seed, ids: Sequence[int]) -> bool:
    return seed.states() == dict.fromkeys(ids, "consumed")


async def test_an_aborted_record_is_never_persisted_and_markers_are_no_lag(
    world: World, tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = Seed(world, tmp_path)
    monkeypatch.syspath_prepend(world.environ["PYTHONPATH"])
    sys.modules.pop("notebook", None)  # that of another test
    producer = Transactions(seed)
    producer.commit(1, 2)
    producer.abort(3, 4)
    producer.commit(5)
    producer.abort(6)
    worker = world.worker()
    await eventually(lambda: consumed(seed, [1, 2, 5]), 60)
    group = world.settings.worker.group

    def nothing_left() -> bool:
        committed, ends = offsets(world.settings.broker_url, group, seed.topic, 2)
        return bool(ends) and committed == ends

    await eventually(nothing_left, 20)
    with producer.open(7):
        # A log that goes on behind what everybody may read is no lag either.
        seed.raw(envelope(8), key="a")
        report = _audit(world)
        assert not report.lagging
        assert consumed(seed, [1, 2, 5])
        producer.producer.commit_transaction(20)
    await eventually(lambda: consumed(seed, [1, 2, 5, 7, 8]), 30)
    producer.abort(9)
    await eventually(nothing_left, 20)
    assert not _audit(world).lagging
    assert seed.saved("a") == ["a1", "a2", "a5", "a7", "a8"]
    assert worker.running
    said = worker.log.read_text()
    assert "is read again" not in said
    assert "stalls" not in said


def _audit(world: World) -> audit.Report:
    settings = world.settings
    with migrate.connection(settings) as connection:
        return audit.audit(connection, settings, configured(settings), patience=0)
