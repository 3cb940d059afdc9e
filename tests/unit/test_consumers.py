"""What is missing of the workers' consumer group, in one line each."""

from __future__ import annotations

from streams.broker.consumers import ConsumerGroup

HAS = frozenset(range(4))


def group(
    members: int, *assigned: int, settled: bool = True, has: frozenset[int] = HAS
) -> ConsumerGroup:
    return ConsumerGroup("g", members, settled, {"t": has}, {"t": frozenset(assigned)})


def test_a_group_whose_members_read_everything_is_well() -> None:
    assert group(2, 0, 1, 2, 3).faults == []


def test_a_group_without_members_names_what_nobody_reads() -> None:
    assert group(0).faults == ["no worker is in consumer group g, nobody reads t: start a worker"]


def test_partitions_without_a_reader_are_named_once_they_were_dealt_out() -> None:
    [fault] = group(2, 0, 3).faults
    assert fault.startswith(
        "no worker reads partitions 1, 2 of topic t: 2 processes are in consumer group g"
    )
    assert group(2, 0, 3, settled=False).faults == []


def test_a_topic_that_does_not_exist_is_missing() -> None:
    assert group(1, has=frozenset()).faults == [
        "consumed topic t does not exist: relay and workers make it when they start"
    ]
