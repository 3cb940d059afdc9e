"""Records of another life on the topic.

Ids are drawn again after a restore, and alone name no message.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from streams.worker.run.decide import OTHER_KEY, OTHER_TIME
from tests.fixtures.listed import Row
from tests.fixtures.simulation import Bench
from tests.fixtures.stage import Stage

MANY = 40
ELDER = 86_400_000  # milliseconds


@pytest.fixture
def stage(database: str) -> Iterator[Stage]:
    """As many messages of one conversation."""
    with Bench(database) as bench:
        stage = Stage(bench)
        for _ in range(MANY):
            stage.insert(bench.connection, "a", "plain")
        yield stage


def foreign(stage: Stage, rows: Sequence[Row], key: str, age: int) -> None:
    """Records of another life, with these rows' ids."""
    for row in rows:
        elder = row._replace(
            created_ms=row.created_ms - age, payload='{"book": "b", "note": "of another life"}'
        )
        stage.log.append(elder, key.encode(), elder.payload.encode())


def work(stage: Stage, size: int) -> None:
    """All that is on the topic."""
    while (run := stage.next_run(0, size)) is not None:
        assert stage.bench.run(stage.bench.workers[0].persist(run)) is not None
        stage.log.committed[0] = run.end


def rejects(stage: Stage) -> list[tuple[object, ...]]:
    """Every range there is."""
    return stage.bench.query(
        'SELECT "offset", last_offset, count, reason FROM outbox_rejects ORDER BY 1'
    )


@pytest.mark.parametrize("size", [7, 1000])
@pytest.mark.parametrize(("key", "why"), [("b", OTHER_KEY), ("a", OTHER_TIME)])
def test_records_of_another_life_are_rejected_and_the_rows_own_persisted(
    stage: Stage, key: str, why: str, size: int
) -> None:
    rows = stage.committed()
    foreign(stage, rows, key, ELDER)
    stage.send(rows)
    foreign(stage, rows, key, ELDER)
    work(stage, size)
    assert stage.bench.query("SELECT note FROM notes ORDER BY id") == [
        (f"n{n + 1:04}",) for n in range(MANY)
    ]
    assert stage.bench.query("SELECT status, count(*) FROM outbox_state GROUP BY 1") == [
        ("consumed", MANY)
    ]
    ranges = rejects(stage)
    assert {reason for *_, reason in ranges} == {why}
    # Before the rows' own records there is one range; behind them they are settled, and it is
    # skipped.
    assert ranges[0][:3] == (0, MANY - 1, MANY) if size < MANY else len(ranges) == 1
