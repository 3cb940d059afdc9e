"""Whether a slot or a database can be gone on from, judged by what was saved."""

from __future__ import annotations

from dataclasses import replace

import pytest

from streams.errors import NotMigrated, UsageError
from streams.relay.leader.plan import Plan, possible_plan
from streams.relay.postgres.continuity import (
    refuse_foreign_slot,
    refuse_stranger,
    why_not_resumable,
    why_unreadable,
)
from streams.relay.postgres.snapshot import RelaySnapshot, Slot
from streams.settings import load

SLOT = Slot("pgoutput", True, None, "reserved", 100, 0)
LOOK = RelaySnapshot("r", SLOT, 5, 100, True, "cdc", "cdc", None, "1/2/3", "1/2/3", 9, "7/1", "7/1")


def slot(**changes: object) -> RelaySnapshot:
    return replace(LOOK, slot=replace(SLOT, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("confirmed", [1, 99, 100])
def test_a_slot_at_or_before_what_was_saved_can_be_read_on(confirmed: int) -> None:
    assert why_not_resumable(slot(confirmed=confirmed)) is None


def test_a_slot_past_what_was_saved_is_another_one() -> None:
    assert (
        why_not_resumable(slot(confirmed=101))
        == "replication slot r begins at 0/65, what is published ends at 0/64"
    )
    assert why_unreadable(slot(confirmed=101)) is None


def test_without_a_saved_position_no_slot_is_trusted() -> None:
    assert (
        why_not_resumable(replace(LOOK, lsn=None))
        == "replication slot r begins at 0/64, what is published ends at an unknown position"
    )


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (replace(LOOK, slot=None), "does not exist"),
        (slot(wal_status="lost"), "has lost its WAL"),
        (slot(confirmed=None), "is being made"),
    ],
)
def test_a_slot_that_cannot_be_read_is_gone(found: RelaySnapshot, words: str) -> None:
    assert words in (why_unreadable(found) or "")
    assert words in (why_not_resumable(found) or "")
    assert possible_plan(load(environ={}), Plan("cdc"), found) == Plan(
        "poll", "cdc", why_not_resumable(found)
    )


@pytest.mark.parametrize("mark", ["7/2", None])
def test_with_another_publication_rows_may_be_missing(mark: str | None) -> None:
    snapshot = replace(LOOK, publication=mark)
    assert "the publication was changed or made anew" in (why_not_resumable(snapshot) or "")
    assert why_not_resumable(replace(snapshot, read_with=None)) is None
    assert why_unreadable(snapshot) is None


def test_a_connector_of_others_cannot_be_healed_by_us() -> None:
    with pytest.raises(
        UsageError, match="rows after outbox_id 5 may be missing; stop its connector"
    ):
        possible_plan(load(environ={}), Plan("debezium"), replace(LOOK, slot=None))
    ours = load(environ={"STREAMS_CONNECT__URL": "http://h:1", "STREAMS_CONNECT__REGISTER": "true"})
    assert (
        possible_plan(ours, Plan("debezium"), replace(LOOK, slot=None)).recovering_to == "debezium"
    )


def test_debezium_confirms_by_itself() -> None:
    assert possible_plan(load(environ={}), Plan("debezium"), slot(confirmed=500)) == Plan(
        "debezium"
    )


def test_polling_needs_no_slot() -> None:
    assert possible_plan(load(environ={}), Plan("poll"), replace(LOOK, slot=None)) == Plan("poll")


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ("7/2/3", "system identifier 7 before, 1 now"),
        ("1/7/3", "database 7 before, 2 now"),
        ("7/2/8", "system identifier 7 before, 1 now, table outbox 8 before, 3 now"),
    ],
)
def test_another_database_is_refused(known: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        refuse_stranger(replace(LOOK, known_as=known))
    assert f"({words})" in str(caught.value)
    assert "floor 5 is not trusted" in str(caught.value)


def test_a_sequence_below_the_floor_is_refused() -> None:
    refuse_stranger(replace(LOOK, newest=5))
    with pytest.raises(UsageError, match="went back to 4, below floor 5"):
        refuse_stranger(replace(LOOK, newest=4))


def test_a_position_of_an_older_version_knows_no_database() -> None:
    refuse_stranger(replace(LOOK, known_as=None))


def test_only_a_relay_that_led_may_do_without_its_slot() -> None:
    refuse_foreign_slot(replace(LOOK, slot=None))
    with pytest.raises(NotMigrated, match="run `streams migrate`"):
        refuse_foreign_slot(replace(LOOK, slot=None, led=False))
    with pytest.raises(UsageError, match=r"plugin test_decoding, this database\): set relay\.name"):
        refuse_foreign_slot(slot(plugin="test_decoding"))
