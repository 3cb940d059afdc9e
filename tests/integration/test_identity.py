"""Records of another life on the topic: ids are drawn again after a restore, and alone name no message."""

from __future__ import annotations

import pytest

from tests.fixtures.listed import TOPIC, Record, Row
from tests.fixtures.simulation import Bench
from tests.fixtures.stage import Stage

MANY = 40
ELDER = 86_400_000  # milliseconds


def _send(stage: Stage, rows: list[Row], key: str | None = None, age: int = 0) -> None:
    for row in rows:
        other = row._replace(created_ms=row.created_ms - age)
        stage.log.append(other, (key or row.key).encode(), row.payload.encode())


def _enqueue(stage: Stage, count: int = MANY) -> list[Row]:
    with stage.bench.business() as connection:
        for _ in range(count):
            stage.insert(connection, "a", "plain")
    return stage.committed()


def _work(stage: Stage, size: int) -> None:
    while (run := stage.next_run(0, size)) is not None:
        assert stage.bench.run(stage.bench.workers[0].persist(run)) is not None
        stage.log.committed[0] = run.end
