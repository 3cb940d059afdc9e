"""When a record without an outbox row is nobody's: nobody can be committing the row any more."""

from __future__ import annotations

import pytest

from streams.worker.failure import doubt
from streams.worker.failure.doubt import Doubt, Leaf


def leaf(*writers: str, standby: bool = False) -> Leaf:
    return Leaf(1, 1000, 500, writers, standby)


def test_nobody_writing_decides_it() -> None:
    one = Doubt()
    assert not one.decided
    one.look(leaf())
    assert one.decided


def test_a_partition_that_there_is_not_decides_it() -> None:
    one = Doubt()
    one.look(None)
    assert one.decided


def test_writers_that_came_later_do_not_count() -> None:
    one = Doubt()
    one.look(leaf("3/1", "3/2"))
    one.look(leaf("3/2", "3/3"))
    assert (one.writers, one.decided) == (frozenset({"3/2"}), False)
    one.look(leaf("3/3", "3/4"))
    assert one.decided


def test_whoever_takes_too_long_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Doubt()
    one.look(leaf("3/1"))
    assert not one.decided
    monkeypatch.setattr(doubt, "VISIBLE_SECONDS", -1.0)
    assert one.decided


def test_a_commit_that_waits_for_a_standby_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doubt, "VISIBLE_SECONDS", -1.0)
    one = Doubt()
    one.look(leaf("3/1", standby=True))
    assert not one.decided
    one.look(leaf("3/2", standby=True))
    assert one.decided
