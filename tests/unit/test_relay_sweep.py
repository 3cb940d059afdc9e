"""What counts as lost: published before a point that the workers have passed.

The point is one of the message's own partition.
"""

from __future__ import annotations

from streams.broker.partitioner import partition_of
from streams.relay.leader.sweep import Progress, Topic

# Keys of partition 0 and 1 of two.
ZERO, ONE = (next(key for key in "abcdefgh" if partition_of(key, 2) == number) for number in (0, 1))


def topic(end: int, committed: int, *, start: int = 0, uuid: str = "one", other: int = 0) -> Topic:
    """Two partitions, the second with `other` records that nobody has read."""
    return Topic(uuid, {0: start, 1: 0}, {0: end, 1: other}, {0: committed, 1: -1})


def lost(progress: Progress, outbox_id: int, key: str = ZERO, sent_as: int | None = None) -> bool:
    row = (outbox_id, key, outbox_id if sent_as is None else sent_as)
    return progress.lost([row], progress.passed) == [outbox_id]


def test_a_message_that_merely_lags_is_left_alone() -> None:
    progress = Progress()
    for committed in (-1, 0, 5, 99):
        progress.note(topic(100, committed), floor=7)
        assert not lost(progress, 7)


def test_a_message_published_before_a_point_that_was_passed_is_lost() -> None:
    progress = Progress()
    progress.note(topic(100, 99), floor=7)
    progress.note(topic(120, 100), floor=8)
    assert lost(progress, 7) and not lost(progress, 8)
    progress.note(topic(130, 119), floor=9)
    assert not lost(progress, 8)
    progress.note(topic(130, 120), floor=9)
    assert lost(progress, 8) and not lost(progress, 9)


def test_a_partition_that_nobody_reads_hides_no_lost_message_of_another() -> None:
    progress = Progress()
    for _ in range(2):
        progress.note(topic(100, 100, other=5), floor=7)
    assert lost(progress, 7, ZERO) and not lost(progress, 7, ONE)


def test_records_that_kafka_deleted_were_passed_also_by_a_group_that_never_committed() -> None:
    progress = Progress()
    progress.note(topic(100, -1), floor=7)
    progress.note(topic(100, -1, start=99), floor=7)
    assert not lost(progress, 7)
    progress.note(topic(100, -1, start=100), floor=7)
    assert lost(progress, 7)


def test_a_message_sent_again_is_judged_by_its_last_record() -> None:
    progress = Progress()
    for _ in range(2):
        progress.note(topic(100, 100), floor=7)
    assert lost(progress, 5) and not lost(progress, 5, sent_as=8)


def test_a_topic_that_was_made_anew_starts_anew() -> None:
    progress = Progress()
    for _ in range(2):
        progress.note(topic(100, 100), floor=7)
    progress.note(topic(3, 2, uuid="two"), floor=9)
    assert not lost(progress, 7)
    progress.note(topic(3, 3, uuid="two"), floor=9)
    assert lost(progress, 9)


def test_an_offset_committed_in_a_log_that_is_gone_counts_for_nothing() -> None:
    progress = Progress()
    for _ in range(2):
        progress.note(topic(3, 100), floor=7)
    assert not lost(progress, 7)


def test_a_log_that_lost_its_tail_is_passed_at_its_new_end() -> None:
    progress = Progress()
    progress.note(topic(100, 40), floor=7)
    progress.note(topic(50, 40), floor=8)
    assert not lost(progress, 7)
    progress.note(topic(50, 50), floor=9)
    assert lost(progress, 8)
