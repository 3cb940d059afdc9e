"""Conversations that wait, where it is hard.

Very long ones, odd keys, a retry that hangs, two biz_types of different minds.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from streams import operate
from streams.database import migrate
from tests.conftest import Eventually, World
from tests.fixtures.notes import Notes
from tests.fixtures.publish import publish

KEYS = [
    "a b",
    "a'b\"c\\d",
    "ключ",
    "🗝",
    "{a,b}",
    "NULL",
    "%s",
    "%(key)s",
    "a\tb\nc",
    " ",
    "x" * 255,
    "\u0085\ufeff",
    "null",
]


@pytest.fixture
def notes(world: World, tmp_path: Path) -> Notes:
    """Notes that fail on demand."""
    return Notes(world, tmp_path)


@pytest.mark.parametrize("many", [2000, pytest.param(10_000, marks=pytest.mark.long)])
async def test_thousands_of_messages_behind_one_head(
    notes: Notes, eventually: Eventually, many: int
) -> None:
    notes.fail("a0")
    worker = notes.world.worker()
    head = notes.send("a", "a0")
    await eventually(lambda: notes.all(head, "retrying"), 60)
    notes.world.query(
        "INSERT INTO outbox (biz_type, topic, key, payload)"
        " SELECT 'note_added', %s, 'a', json_build_object('book', 'a', 'note', 'a' || n)"
        " FROM generate_series(1, %s) AS n",
        notes.topic,
        many,
    )
    ids = [row[0] for row in notes.world.query("SELECT id FROM outbox ORDER BY id")]
    publish(notes.world.settings.broker_url, notes.topic, notes.world.url, ids[1:])
    await eventually(
        lambda: (
            notes.world.query("SELECT count(*) FROM outbox_state WHERE status = 'parked'")
            == [(many,)]
        ),
        60,
    )
    beside = notes.send("b", "b0", "b1")
    await eventually(lambda: notes.all(beside, "consumed"), 30)
    notes.mend()
    await eventually(lambda: notes.all(head, "consumed"), 30)
    await eventually(lambda: notes.all(ids, "consumed"), 30)
    assert notes.saved("a") == [f"a{n}" for n in range(many + 1)]
    assert worker.running


async def test_conversations_with_odd_keys_wait_and_go_on(
    notes: Notes, eventually: Eventually
) -> None:
    notes.world.worker()
    for key in KEYS:
        notes.fail(f"{key} 1")
    ids = {key: notes.send(key, *[f"{key} {n}" for n in range(3)]) for key in KEYS}
    expected = ["consumed", "retrying", "parked"]
    await eventually(
        lambda: all(list(notes.states(some).values()) == expected for some in ids.values()), 60
    )
    late = [one for key in KEYS for one in notes.send(key, f"{key} 3")]
    await eventually(lambda: notes.all(late, "parked"), 30)
    notes.mend()
    await eventually(
        lambda: notes.all([one for some in ids.values() for one in some] + late, "consumed"), 60
    )
    for key in KEYS:
        assert notes.saved(key) == [f"{key} {n}" for n in range(4)]


async def test_a_retry_that_hangs_costs_its_own_conversation(
    notes: Notes, eventually: Eventually
) -> None:
    """The message fails at first, and hangs when it is retried.

    Time is counted as an attempt, and others go on.
    """
    notes.world.environ |= {
        "STREAMS_WORKER__HANDLER_TIMEOUT": "1",
        "STREAMS_WORKER__LOCK_TIMEOUT": "0.5",
    }
    notes.world.query(
        "CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60);"
        " RETURN NEW; END $$;"
        " CREATE TRIGGER hang BEFORE INSERT ON notes FOR EACH ROW"
        " WHEN (NEW.note = 'a0' AND NEW.attempts > 0) EXECUTE FUNCTION hang();"
    )
    notes.fail("a0")
    notes.fail("c0")
    worker = notes.world.worker()
    ids = notes.send("a", "a0", "a1")
    others = notes.send("c", "c0", "c1")
    await eventually(lambda: notes.states(others)[others[0]] == "retrying", 60)
    notes.mend()
    await eventually(lambda: notes.all(others, "consumed"), 60)

    def timed_out() -> bool:
        rows = notes.world.query(
            "SELECT attempts, error_code FROM outbox_state WHERE outbox_id = %s", ids[0]
        )
        return bool(rows) and rows[0][0] >= 2 and rows[0][1] in ("timeout", "57014")

    await eventually(timed_out, 60)
    assert notes.states(ids)[ids[1]] == "parked"
    flowing = notes.send("b", *[f"b{n}" for n in range(20)])
    await eventually(lambda: notes.all(flowing, "consumed"), 60)
    notes.world.query("DROP TRIGGER hang ON notes")
    await eventually(lambda: notes.all(ids, "consumed"), 60)
    assert notes.saved("a") == ["a0", "a1"]
    assert worker.running


async def test_two_biz_types_of_one_conversation_die_differently(
    world: World, tmp_path: Path, eventually: Eventually
) -> None:
    """A dead mark lets the book go on, a dead note holds it, marks included."""
    notes = Notes(world, tmp_path, on_dead="hold")
    world.worker()
    ids = notes.send("a", "a0")
    ids += notes.send("a", "reject:a1", biz_type="mark_added")
    ids += notes.send("a", "a2", "reject:a3")
    ids += notes.send("a", "a4", biz_type="mark_added")
    ids += notes.send("a", "a5")
    expected = ["consumed", "dead", "consumed", "dead", "parked", "parked"]
    await eventually(lambda: list(notes.states(ids).values()) == expected, 60)
    assert notes.saved("a") == ["a0", "a2"]


async def test_a_conversation_released_by_two_people_at_once_is_released_once(
    world: World, tmp_path: Path, eventually: Eventually
) -> None:
    notes = Notes(world, tmp_path, on_dead="hold")
    world.worker()
    ids = notes.send("a", "a0", "reject:a1", "a2")
    await eventually(lambda: list(notes.states(ids).values()) == ["consumed", "dead", "parked"], 60)
    results: list[object] = []

    def release(who: str) -> None:
        with migrate.connection(world.settings) as connection:
            together.wait()
            try:
                results.append(operate.release(connection, "a", operate.Operator(who)))
            except operate.NotHeld as error:
                results.append(error)

    together = threading.Barrier(2)
    people = [threading.Thread(target=release, args=(who,)) for who in ("ann", "bob")]
    for each in people:
        each.start()
    for each in people:
        await asyncio.to_thread(each.join, 30)
    assert [ids[1]] in results
    assert [type(one) for one in results if one != [ids[1]]] == [operate.NotHeld]
    assert world.query("SELECT count(*) FROM outbox_actions WHERE act = 'release'") == [(1,)]
