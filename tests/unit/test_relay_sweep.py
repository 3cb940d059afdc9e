"""What counts as lost: seen without a fate before a point that the workers have committed past."""

from __future__ import annotations

from streams.relay.sweep import Suspects, Topic


def topic(ends: int, committed: int, uuid: str = "one") -> dict[str, Topic]:
    return {"t": Topic(uuid, {0: ends, 1: 0}, {0: committed, 1: -1})}


def test_what_merely_lags_is_left_alone() -> None:
    suspects = Suspects()
    for committed in (-1, 0, 5, 99):
        assert suspects.guilty([(7, "t")], topic(100, committed)) == []


def test_what_was_passed_is_lost_once_it_was_seen_before() -> None:
    suspects = Suspects()
    assert suspects.guilty([(7, "t")], topic(100, 100)) == []
    assert suspects.guilty([(7, "t"), (8, "t")], topic(120, 100)) == [7]
    assert suspects.guilty([(7, "t"), (8, "t")], topic(130, 119)) == [7]
    assert suspects.guilty([(7, "t"), (8, "t")], topic(130, 120)) == [7, 8]


def test_what_was_sent_again_is_judged_anew() -> None:
    suspects = Suspects()
    suspects.guilty([(7, "t")], topic(100, 100))
    assert suspects.guilty([(7, "t")], topic(100, 100)) == [7]
    suspects.forget([7])
    assert suspects.guilty([(7, "t")], topic(101, 100)) == []
    assert suspects.guilty([(7, "t")], topic(101, 100)) == []
    assert suspects.guilty([(7, "t")], topic(101, 101)) == [7]


def test_a_topic_that_was_made_anew_starts_anew() -> None:
    suspects = Suspects()
    suspects.guilty([(7, "t")], topic(100, 50))
    assert suspects.guilty([(7, "t")], topic(3, 3, "two")) == []
    assert suspects.guilty([(7, "t")], topic(3, 3, "two")) == [7]


def test_what_got_its_fate_is_forgotten_and_unknown_topics_are_nobodys() -> None:
    suspects = Suspects()
    suspects.guilty([(7, "t"), (9, "other")], topic(100, 100))
    assert suspects.guilty([(9, "other")], topic(100, 100)) == []
    assert suspects.guilty([(7, "t")], topic(100, 100)) == []
