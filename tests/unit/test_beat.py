"""What tells a database that went back from one that did not."""

from __future__ import annotations

import pytest

from streams.broker import beat
from streams.broker.beat import KnownBeats, gone_back
from streams.settings import load

KAFKA = {("outbox", "1/2/3"): 7, ("other", "1/2/3"): 4, ("outbox", "5/2/3"): 1}


@pytest.mark.parametrize("rows", [
    [("outbox", 7, "1/2/3"), ("other", 4, "1/2/3")],
    [("outbox", 8, "1/2/3"), ("other", 9, "1/2/3")],  # the relay died between commit and Kafka
    [("outbox", 7, "1/2/3")],  # a relay that an operator removed
    [("outbox", 1, "5/2/3")],  # another deployment on this broker, of the same name
    [("outbox", 1, "9/2/3")],  # another database on this broker, or a dump: its identity says so
    [(None, None, "9/2/3")],
])  # fmt: skip
def test_a_database_that_did_not_go_back_goes_on(
    rows: list[tuple[str | None, int | None, str]],
) -> None:
    assert gone_back(KAFKA, rows, "outbox") is None


def test_an_offset_that_kafka_lost_proves_nothing() -> None:
    assert gone_back({}, [("outbox", 7, "1/2/3")], "outbox") is None


@pytest.mark.parametrize("rows", [
    [("outbox", 6, "1/2/3"), ("other", 4, "1/2/3")],
    [("outbox", 7, "1/2/3"), ("other", 3, "1/2/3")],  # of several relays the one that counts
    [("outbox", None, "1/2/3")],  # set back to a time before the first beat
    [(None, None, "1/2/3")],
])  # fmt: skip
def test_a_database_that_counted_less_is_refused(
    rows: list[tuple[str | None, int | None, str]],
) -> None:
    reason = gone_back(KAFKA, rows, "outbox")
    assert reason is not None
    assert "went back" in reason


def test_another_database_behind_the_same_address_is_known_by_its_identity() -> None:
    known = KnownBeats(load(environ={"BROKER_URL": "127.0.0.1:1"}))
    assert known.another([(None, None, "1/2/3")]) is None
    assert known.another([("outbox", 7, "1/2/3"), ("other", 4, "1/2/3")]) is None
    assert known.another([("outbox", 7, "9/2/3")]) == (
        "its identity is 9/2/3, it was 1/2/3 (a dump, or an upgrade)"
    )


def test_what_others_learn_while_the_database_is_read_does_not_make_it_go_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of two connections made at once one learnt of a newer beat than the other had read."""
    monkeypatch.setattr(beat, "read", lambda settings, patience: {("outbox", "1/2/3"): 29})
    known = KnownBeats(load(environ={"BROKER_URL": "127.0.0.1:1"}))
    before = known.from_kafka(patience=1.0)
    rows = [("outbox", 29, "1/2/3")]
    assert known.gone_back(before, [("outbox", 30, "1/2/3")]) is None
    assert known.gone_back(before, rows) is None
    assert known.gone_back(known.from_kafka(patience=1.0), rows) is not None
