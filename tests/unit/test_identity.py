"""Whether a record is its outbox row's, by the pure rules."""

from __future__ import annotations

import pytest

from streams.worker.failure.classify import WrongTimes
from streams.worker.run.decide import (
    NEAR,
    OTHER_KEY,
    OTHER_ROOT,
    OTHER_TIME,
    OTHER_TOPIC,
    Named,
    Range,
    check_times,
    rejected_range,
    stranger,
)

ROW = Named("c1", 1000, None, "notes")


@pytest.mark.parametrize(
    ("record", "root", "why"),
    [
        (ROW, 7, None),
        (ROW._replace(topic="others"), 7, OTHER_TOPIC),
        (ROW._replace(key=""), 7, OTHER_KEY),
        (ROW, 6, OTHER_ROOT),
        (ROW._replace(created_ms=1001), 7, OTHER_TIME),
        (ROW._replace(created_ms=None), 7, OTHER_TIME),
    ],
)
def test_id_key_time_root_and_topic_are_the_rows(record: Named, root: int, why: str | None) -> None:
    assert stranger(record, root, ROW, 7) == why


def test_a_time_that_no_record_can_carry_is_nobodys() -> None:
    never = ROW._replace(created_ms=None)
    assert stranger(never, 7, never, 7) == OTHER_TIME


def test_a_resend_names_its_root_and_has_its_own_time() -> None:
    row = Named("c1", 2000, 7, "notes")
    assert stranger(row, 7, row, 9) is None
    assert stranger(row, 9, row, 9) == OTHER_ROOT


def test_times_after_their_rows_are_a_setting_and_no_other_life() -> None:
    check_times([], another_life=False)
    check_times([(1001, 1000)], another_life=False)
    check_times([(999, 1000)] * 50, another_life=False)
    check_times([(1001, 1000)] * 50, another_life=True)
    with pytest.raises(
        WrongTimes, match=r"2 records carry later times .* table\.field\.event\.timestamp"
    ):
        check_times([(1001, 1000)] * 2, another_life=False)
    with pytest.raises(WrongTimes, match=r"expected message\.timestamp\.type=CreateTime"):
        check_times([(None, 1000)], another_life=True)


def test_rejected_records_make_ranges_and_count_once() -> None:
    first = rejected_range(3, "why", [5, 6, 9], None)
    assert first == Range(3, 5, 9, 3, "why")
    assert rejected_range(3, "why", [5, 6, 9], first) is None
    assert rejected_range(3, "why", [9, 10], first) == Range(3, 5, 10, 4, "why")
    far = 9 + NEAR + 1
    assert rejected_range(3, "why", [far], first) == Range(3, far, far, 1, "why")
