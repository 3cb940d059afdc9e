"""What offsets of an envelope topic say: deleted, rejected, or of another topic of its name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from streams.database import query
from streams.envelope import DELETED
from tests.fixtures.workbench import TOPIC, Workbench

Rejects = list[tuple[int, int, int, str]]
OTHER = "the value is no envelope"


@pytest.fixture
def bench(database: str) -> Iterator[Workbench]:
    """A worker for another system's topic of notes."""
    with Workbench(database, envelopes=True) as bench:
        yield bench


def noted(bench: Workbench, first: int, end: int, *, own: bool = False) -> Rejects:
    """The rejects once a worker was told that Kafka deleted these offsets."""
    run = bench.send("after")
    run.deleted = first, end
    assert bench.run(bench.worker.note_deleted(run))
    assert run.deleted is None or own
    return bench.query(
        'SELECT "offset", last_offset, count, reason FROM outbox_rejects ORDER BY "offset"'
    )


def reject(bench: Workbench, first: int, last: int | None, reason: str, at: str = "now()") -> None:
    bench.query(
        'INSERT INTO outbox_rejects (topic, partition, "offset", last_offset, reason, at)'
        f" VALUES (%s, 0, %s, %s, %s, {at})",
        TOPIC,
        first,
        last,
        reason,
    )


def topic(bench: Workbench, topic_id: str, minutes_ago: int) -> None:
    bench.query(
        "INSERT INTO outbox_topics (topic, topic_id, cluster_id, partitions, noted_at)"
        " VALUES (%s, %s, 'c', 1, now() - %s * interval '1 minute')",
        TOPIC,
        topic_id,
        minutes_ago,
    )


def test_what_was_deleted_is_noted_once_however_often_it_is_told(bench: Workbench) -> None:
    for _ in range(2):
        assert noted(bench, 50, 300) == [(50, 299, 250, DELETED)]


def test_it_begins_behind_what_was_read_and_rejected_before(bench: Workbench) -> None:
    """A worker that was killed before it could commit: the range of rejects has its offset."""
    reject(bench, 50, 52, OTHER)
    reject(bench, 53, None, OTHER)
    assert noted(bench, 50, 300)[2:] == [(54, 299, 246, DELETED)]


def test_nothing_is_noted_where_all_of_it_was_read(bench: Workbench) -> None:
    reject(bench, 50, 52, OTHER)
    assert [row[3] for row in noted(bench, 50, 53)] == [OTHER]


def test_rejects_of_a_topic_that_had_the_name_before_give_way(bench: Workbench) -> None:
    topic(bench, "old", 60)
    topic(bench, "new", 10)
    reject(bench, 50, 400, OTHER, "now() - interval '30 minutes'")
    assert noted(bench, 50, 300) == [(50, 299, 250, DELETED)]


@pytest.mark.parametrize(
    ("committed", "of", "expected"),
    [
        (60, "new", [(60, 99, 40, DELETED)]),
        (None, "new", []),
        (100, "new", []),
        (60, "old", []),
    ],
    ids=["it had read some", "it had read nothing", "it had read all", "of another topic"],
)
def test_where_kafka_forgot_how_far_the_group_was_the_database_says_it(
    bench: Workbench, committed: int | None, of: str, expected: Rejects
) -> None:
    """Offsets of a group without members go after a week, as records do by default."""
    topic(bench, "old", 60)
    topic(bench, "new", 10)
    bench.query(
        'INSERT INTO outbox_lag ("group", topic, partition, topic_id, committed, at)'
        " VALUES ('g', %s, 0, %s, %s, now())",
        TOPIC,
        of,
        committed,
    )
    assert noted(bench, -1, 100) == expected


def test_our_own_messages_are_in_the_outbox(database: str) -> None:
    with Workbench(database) as bench:
        assert noted(bench, 50, 300, own=True) == []


def test_a_topic_that_is_back_after_kafka_failed_over_is_the_one_it_was(bench: Workbench) -> None:
    """All that was known of it from before looked like that of a topic that is gone."""
    topic(bench, "a", 60)
    reject(bench, 5, 9, OTHER, "now() - interval '30 minutes'")
    topic(bench, "b", 10)

    def known(topic_id: str) -> tuple[list[int], int | None]:
        """Those of two records that no reject covers, and the first one that is known."""
        given = {"topic": TOPIC, "partition": 0, "topic_id": topic_id}
        asked = {**given, "offsets": [7, 20]}
        rows = bench.connection.execute(query("audit_unrejected"), asked).fetchall()
        [(first,)] = bench.connection.execute(query("foreign_first_offset"), given).fetchall()
        return [row[0] for row in rows], first

    assert known("a") == ([20], 5)
    assert known("b") == ([7, 20], None)
    reject(bench, 20, None, OTHER)
    assert known("b") == ([7], 20)
