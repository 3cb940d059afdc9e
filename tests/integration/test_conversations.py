"""Conversations that a dead message holds, on a real worker.

They are listed, released, discarded, replayed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from streams import operate
from streams.cli import cli
from tests.conftest import Eventually, World
from tests.fixtures.notes import Notes

Run = Callable[..., Result]


@pytest.fixture
def notes(world: World, tmp_path: Path) -> Notes:
    """Notes whose conversations wait for an operator when one is dead."""
    return Notes(world, tmp_path, on_dead="hold")


@pytest.fixture
def run(notes: Notes, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run one command in this world."""
    for name, value in notes.world.environ.items():
        if name != "PYTHONPATH":
            monkeypatch.setenv(name, value)
    return lambda *arguments: CliRunner().invoke(cli, arguments, standalone_mode=False)


async def held(notes: Notes, eventually: Eventually) -> list[int]:
    """A conversation of five that its second message holds, and one beside it that flows."""
    notes.fail("a1", "22003")
    notes.world.worker()
    ids = notes.send("a", *[f"a{n}" for n in range(5)])
    others = notes.send("b", "b0", "b1")
    await eventually(lambda: notes.all(others, "consumed"), 60)
    await eventually(
        lambda: list(notes.states(ids).values()) == ["consumed", "dead", *["parked"] * 3], 30
    )
    return ids


async def test_a_held_conversation_is_listed_and_released(
    notes: Notes, run: Run, eventually: Eventually
) -> None:
    ids = await held(notes, eventually)
    [found] = json.loads(run("conversations", "list", "--held", "--json").output)
    expected = {
        "topic": notes.topic,
        "key": "a",
        "open": 4,
        "head": ids[1],
        "status": "dead",
        "error_code": "22003",
    }
    assert found | {"since": ""} == {**expected, "since": ""}
    assert "22003" in run("conversations", "list").output
    result = run("conversations", "release", "a", "--who", "ann", "--why", "go on")
    assert (result.exception, result.output) == (None, f"released: held by {ids[1]}\n")
    await eventually(lambda: notes.all(ids[2:], "consumed"), 60)
    assert notes.saved("a") == ["a0", "a2", "a3", "a4"]
    assert notes.states(ids)[ids[1]] == "dead"
    assert notes.world.query("SELECT who, act, outbox_id, why FROM outbox_actions") == [
        ("ann", "release", ids[1], "go on")
    ]
    assert isinstance(run("conversations", "release", "a").exception, operate.NotHeld)
    assert run("conversations", "list").output == "no conversation waits\n"


async def test_a_replayed_head_goes_first(notes: Notes, run: Run, eventually: Eventually) -> None:
    ids = await held(notes, eventually)
    notes.mend()
    assert run("dead", "replay", str(ids[1])).exception is None
    [(source,)] = notes.world.query(
        "SELECT source_id FROM outbox_state WHERE outbox_id = %s", ids[1]
    )
    notes.publish([source])
    await eventually(lambda: notes.all(ids, "consumed"), 60)
    assert notes.saved("a") == [f"a{n}" for n in range(5)]


async def test_a_discarded_head_lets_its_conversation_go_on(
    notes: Notes, run: Run, eventually: Eventually
) -> None:
    ids = await held(notes, eventually)
    assert run("dead", "discard", "--key", "a").exception is None
    await eventually(lambda: notes.all(ids[2:], "consumed"), 60)
    assert notes.saved("a") == ["a0", "a2", "a3", "a4"]


async def test_a_whole_conversation_of_dead_messages_is_replayed_in_order(
    world: World, tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Notes(world, tmp_path)
    texts = [f"a{n}" for n in range(40)]
    for text in texts:
        notes.fail(text, "22003")
    world.worker()
    ids = notes.send("a", *texts)
    await eventually(lambda: notes.all(ids, "dead"), 60)
    notes.mend()
    for name, value in world.environ.items():
        if name != "PYTHONPATH":
            monkeypatch.setenv(name, value)
    assert (
        CliRunner().invoke(cli, ["dead", "replay", "--key", "a", "--yes"]).output
        == "replayed 40 messages\n"
    )
    later = notes.send("a", "later")
    again = [
        row[0]
        for row in world.query("SELECT id FROM outbox WHERE resend_of IS NOT NULL ORDER BY id")
    ]
    notes.publish(again)
    await eventually(lambda: notes.all(ids + later, "consumed"), 60)
    assert notes.saved("a") == [*texts, "later"]


async def test_while_its_head_is_replaying_a_conversation_is_nobodys_to_touch(
    notes: Notes, run: Run, eventually: Eventually
) -> None:
    ids = await held(notes, eventually)
    notes.mend()
    assert run("dead", "replay", str(ids[1])).exception is None
    for verb in ("replay", "discard"):
        error = run("dead", verb, str(ids[1])).exception
        assert isinstance(error, operate.NotDead)
        assert str(error) == f"message {ids[1]} is replaying, expected dead: nothing was done"
    assert isinstance(run("conversations", "release", "a").exception, operate.NotHeld)
    assert notes.states(ids[2:]) == dict.fromkeys(ids[2:], "parked")
    [(again,)] = notes.world.query("SELECT id FROM outbox WHERE resend_of IS NOT NULL")
    notes.publish([again])
    await eventually(lambda: notes.all(ids, "consumed"), 60)
    assert notes.saved("a") == [f"a{n}" for n in range(5)]


async def test_a_filter_replayed_again_and_again_while_messages_still_fail_loses_nothing(
    world: World, tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = Notes(world, tmp_path, attempts=3)
    for name, value in world.environ.items():
        if name != "PYTHONPATH":
            monkeypatch.setenv(name, value)
    books = [f"b{n}" for n in range(6)]
    for book in books:
        notes.fail(f"{book} 1")
        notes.fail(f"{book} 2")
    world.relay()
    workers = [world.worker(), world.worker()]
    ids = [one for book in books for one in notes.enqueue(book, *[f"{book} {n}" for n in range(5)])]
    first = ids[1::5]

    def replay() -> None:
        """What is dead now; what is replaying, retrying or parked is not."""
        error = (
            CliRunner()
            .invoke(
                cli,
                ["dead", "replay", "--error", "P0001", "--yes", "--force"],
                standalone_mode=False,
            )
            .exception
        )
        assert error is None, error

    def stirred() -> bool:
        replay()
        return world.query(
            "SELECT min(replays) >= 2 FROM outbox_state WHERE outbox_id = ANY(%s)", first
        ) == [(True,)]

    await eventually(lambda: "dead" in notes.states(first).values(), 60)
    await eventually(stirred, 60, every=0.2)
    notes.mend()

    def settled() -> bool:
        replay()
        return notes.all(ids, "consumed")

    await eventually(settled, 60, every=0.2)
    assert world.query(
        "SELECT count(*) FROM outbox_state WHERE topic IS NOT NULL OR key IS NOT NULL"
    ) == [(0,)]
    for book in books:
        saved = notes.saved(book)
        assert sorted(saved) == [f"{book} {n}" for n in range(5)]
        # What an operator replays may come late; what never died keeps its order.
        assert [note for note in saved if note[-1] in "034"] == [f"{book} {n}" for n in (0, 3, 4)]
    assert all(worker.running for worker in workers)
