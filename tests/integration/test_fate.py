"""The fate of messages that fail, on a real worker.

Order through retries, who is guilty, what is terminal.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from tests.conftest import Eventually, World
from tests.fixtures.notes import Notes


@pytest.fixture
def notes(world: World, tmp_path: Path) -> Notes:
    """Notes that fail on demand."""
    return Notes(world, tmp_path)


async def test_a_failing_message_is_retried_and_its_conversation_keeps_its_order(
    notes: Notes, eventually: Eventually
) -> None:
    notes.fail("a3")
    worker = notes.world.worker()
    ids = [one for n in range(10) for one in notes.send("a", f"a{n}") + notes.send("b", f"b{n}")]
    mine, others = ids[::2], ids[1::2]
    await eventually(lambda: notes.all(others, "consumed"), 60)
    await eventually(lambda: notes.states(mine)[mine[3]] == "retrying", 30)
    await eventually(lambda: set(notes.states(mine[4:]).values()) == {"parked"}, 30)
    assert notes.saved("a") == ["a0", "a1", "a2"]
    [(topic, key, code, error)] = notes.world.query(
        "SELECT topic, key, error_code, error FROM outbox_state WHERE status = 'retrying'"
    )
    assert (topic, key, code) == (notes.topic, "a", "P0001")
    assert error.startswith("RaiseException (P0001), at notebook/__init__.py:")
    more = notes.send("a", "a10", "a11")
    await eventually(lambda: notes.all(more, "parked"), 30)
    await eventually(
        lambda: notes.world.query("SELECT max(attempts) FROM outbox_state") >= [(3,)], 30
    )
    notes.mend()
    await eventually(lambda: notes.all(mine + more, "consumed"), 30)
    assert notes.saved("a") == [f"a{n}" for n in range(12)]
    assert notes.world.query(
        "SELECT count(*) FROM outbox_state WHERE topic IS NOT NULL OR key IS NOT NULL"
    ) == [(0,)]
    applied = notes.world.query(
        "SELECT outbox_id FROM outbox_state WHERE outbox_id = ANY(%s) ORDER BY applied", mine
    )
    assert [one for (one,) in applied] == mine
    assert worker.running


async def test_attempts_are_counted_and_used_up(
    world: World, tmp_path: Path, eventually: Eventually
) -> None:
    notes = Notes(world, tmp_path, attempts=4)
    notes.fail("a1")
    world.worker()
    ids = notes.send("a", "a0", "a1", "a2", "a3")
    await eventually(lambda: notes.states(ids)[ids[1]] == "dead", 60)
    await eventually(lambda: notes.all(ids[2:], "consumed"), 30)
    assert notes.saved("a") == ["a0", "a2", "a3"]
    assert world.query(
        "SELECT attempts, topic, key, next_retry_at FROM outbox_state WHERE status = 'dead'"
    ) == [(4, None, None, None)]


async def test_a_dead_message_holds_its_conversation_where_the_biz_type_says_so(
    world: World, tmp_path: Path, eventually: Eventually
) -> None:
    notes = Notes(world, tmp_path, on_dead="hold")
    world.worker()
    ids = notes.send("a", "a0", "reject:a1", "a2") + notes.send("b", "b0")
    await eventually(lambda: notes.states(ids[3:])[ids[3]] == "consumed", 60)
    await eventually(lambda: notes.states(ids[1:3]) == {ids[1]: "dead", ids[2]: "parked"}, 30)
    late = notes.send("a", "a3")
    await eventually(lambda: notes.all(late, "parked"), 30)
    # One that cannot be read, in one run with what is before and behind it.
    unread = [*notes.enqueue("c", "c0"), *notes.enqueue("c", "c1", "c2")]
    world.query("UPDATE outbox SET payload = '{}' WHERE id = %s", unread[1])
    notes.publish(unread)
    await eventually(
        lambda: list(notes.states(unread).values()) == ["consumed", "dead", "parked"], 30
    )
    assert (notes.saved("a"), notes.saved("c")) == (["a0"], ["c0"])


async def test_the_handler_says_reject_or_retry(notes: Notes, eventually: Eventually) -> None:
    notes.world.worker()
    ids = notes.send("a", "a0", "reject:a1", "later:a2", "a3")
    await eventually(lambda: notes.states(ids)[ids[3]] == "consumed", 60)
    assert notes.states(ids)[ids[1]] == "dead"
    assert notes.saved("a") == ["a0", "later:a2", "a3"]
    assert notes.world.query(
        "SELECT error_code, error FROM outbox_state WHERE status = 'dead'"
    ) == [("closed", "the book is closed")]
    assert notes.world.query("SELECT attempts FROM notes WHERE note = 'later:a2'") == [(1,)]


async def test_data_that_time_cannot_heal_is_dead_at_once_and_nothing_waits(
    notes: Notes, eventually: Eventually
) -> None:
    notes.world.query("ALTER TABLE notes ADD CONSTRAINT no_bombs CHECK (note NOT LIKE '%bomb%')")
    worker = notes.world.worker()
    texts = [f"n{n}" for n in range(300)]
    texts[100] = texts[200] = "bomb secret-canary"
    ids = notes.send("a", *texts)
    await eventually(lambda: set(notes.states(ids).values()) == {"consumed", "dead"}, 60)
    assert [one for one, status in notes.states(ids).items() if status == "dead"] == [
        ids[100],
        ids[200],
    ]
    assert notes.saved("a") == [text for text in texts if "bomb" not in text]
    [reasons] = notes.world.query(
        "SELECT DISTINCT error_code, error FROM outbox_state WHERE status = 'dead'"
    )
    code, error = reasons
    assert code == "23514"
    assert error.startswith(
        "CheckViolation (23514): table notes, constraint no_bombs, at notebook/__init__.py:"
    )
    assert "canary" not in Path(notes.world.directory / "faust-0.log").read_text()
    assert worker.running


async def test_a_failing_message_and_a_later_one_of_its_conversation_in_one_run(
    notes: Notes, eventually: Eventually
) -> None:
    notes.fail("a1")
    ids = notes.send("a", "a0", "a1", "a2") + notes.send("b", "b0", "b1")
    notes.world.worker()
    await eventually(lambda: notes.all(ids[3:], "consumed"), 60)
    assert notes.states(ids[:3]) == {ids[0]: "consumed", ids[1]: "retrying", ids[2]: "parked"}
    notes.mend()
    await eventually(lambda: notes.all(ids, "consumed"), 30)
    assert notes.saved("a") == ["a0", "a1", "a2"]


async def test_the_biz_type_changes_within_a_conversation(
    notes: Notes, eventually: Eventually
) -> None:
    texts = [f"a{n}" for n in range(12)]
    ids = [
        notes.enqueue("a", text, biz_type="mark_added" if n % 3 else "note_added")[0]
        for n, text in enumerate(texts)
    ]
    notes.publish(ids)
    notes.fail("a7")
    notes.world.worker()
    await eventually(lambda: notes.states(ids)[ids[7]] == "retrying", 60)
    notes.mend()
    await eventually(lambda: notes.all(ids, "consumed"), 30)
    assert notes.saved("a") == texts


async def test_the_same_record_twice_in_one_run_has_one_effect(
    notes: Notes, eventually: Eventually
) -> None:
    ids = notes.enqueue("a", "a0", "a1", "a2")
    notes.publish([ids[0], ids[1], ids[0], ids[1], ids[2], ids[2]])
    notes.world.worker()
    await eventually(lambda: notes.all(ids, "consumed"), 60)
    assert notes.saved("a") == ["a0", "a1", "a2"]


async def test_a_resend_of_a_parked_conversations_head_keeps_its_order(
    notes: Notes, eventually: Eventually
) -> None:
    notes.fail("a0")
    notes.world.worker()
    ids = notes.send("a", "a0", "a1", "a2")
    await eventually(lambda: notes.states(ids)[ids[0]] == "retrying", 60)
    for _ in range(3):
        notes.resend(ids[0])
        notes.resend(ids[2])
    notes.mend()
    await eventually(lambda: notes.all(ids, "consumed"), 30)
    assert notes.saved("a") == ["a0", "a1", "a2"]


async def test_a_resend_of_what_never_arrived_is_worked_once(
    notes: Notes, eventually: Eventually
) -> None:
    [lost] = notes.enqueue("a", "a0")
    notes.world.worker()
    notes.resend(lost)
    await eventually(lambda: notes.all([lost], "consumed"), 60)
    late = notes.send("a", "a1")
    notes.publish([lost])
    await eventually(lambda: notes.all(late, "consumed"), 30)
    assert notes.saved("a") == ["a0", "a1"]


def replay(notes: Notes, root: int, text: str) -> int:
    """An edited replay, as the desk writes it."""
    [(source,)] = notes.world.query(
        "WITH again AS (INSERT INTO outbox (biz_type, topic, key, payload, resend_of)"
        " SELECT biz_type, topic, key, json_build_object('book', key, 'note', %s::text), id"
        " FROM outbox WHERE id = %s RETURNING id, topic, key) UPDATE outbox_state"
        " SET status = 'replaying', source_id = again.id, attempts = 0, topic = again.topic, key ="
        " again.key, next_retry_at = NULL, arrived = coalesce(arrived, nextval('outbox_arrived'))"
        " FROM again WHERE outbox_id = %s RETURNING source_id",
        text,
        root,
        root,
    )
    return int(source)


async def test_an_original_that_comes_after_an_edited_replay_undoes_nothing(
    notes: Notes, eventually: Eventually
) -> None:
    notes.world.worker()
    [dead] = notes.send("a", "reject:a0")
    await eventually(lambda: notes.all([dead], "dead"), 60)
    source = replay(notes, dead, "edited")
    [behind] = notes.send("a", "a1")
    await eventually(lambda: notes.all([behind], "parked"), 30)
    notes.publish([dead, source, dead])
    await eventually(lambda: notes.all([dead, behind], "consumed"), 30)
    notes.publish([dead, source])
    last = notes.send("a", "a2")
    await eventually(lambda: notes.all(last, "consumed"), 30)
    assert notes.saved("a") == ["edited", "a1", "a2"]


async def test_an_edited_replay_that_has_to_retry_keeps_its_edit(
    notes: Notes, eventually: Eventually
) -> None:
    notes.world.worker()
    [dead] = notes.send("a", "reject:a0")
    await eventually(lambda: notes.all([dead], "dead"), 60)
    notes.fail("edited")
    notes.publish([replay(notes, dead, "edited")])
    await eventually(lambda: notes.all([dead], "retrying"), 30)
    notes.publish([dead])
    await eventually(lambda: notes.world.query("SELECT attempts FROM outbox_state") >= [(2,)], 30)
    notes.mend()
    await eventually(lambda: notes.all([dead], "consumed"), 30)
    assert notes.saved("a") == ["edited"]


async def test_terminal_is_terminal(notes: Notes, eventually: Eventually) -> None:
    notes.world.worker()
    ids = notes.send("a", "a0", "reject:a1", "reject:a2")
    await eventually(lambda: set(notes.states(ids).values()) == {"consumed", "dead"}, 60)
    notes.world.query("UPDATE outbox_state SET status = 'discarded' WHERE outbox_id = %s", ids[2])
    before = notes.world.query("SELECT * FROM outbox_state ORDER BY 1")
    notes.publish([*reversed(ids), *ids])
    for one in ids:
        notes.resend(one)
    last = notes.send("a", "last")
    await eventually(lambda: notes.all(last, "consumed"), 30)
    assert (
        notes.world.query("SELECT * FROM outbox_state WHERE outbox_id = ANY(%s) ORDER BY 1", ids)
        == before
    )
    assert notes.saved("a") == ["a0", "last"]


async def test_ids_that_commit_in_the_other_order_keep_the_order_of_the_topic(
    notes: Notes, eventually: Eventually
) -> None:
    ids = notes.enqueue("a", "a0", "a1", "a2")
    notes.fail("a2")
    notes.publish([ids[2], ids[0], ids[1]])
    notes.world.worker()
    await eventually(
        lambda: notes.states(ids) == {ids[0]: "parked", ids[1]: "parked", ids[2]: "retrying"}, 60
    )
    notes.mend()
    await eventually(lambda: notes.all(ids, "consumed"), 30)
    assert notes.saved("a") == ["a2", "a0", "a1"]


async def test_unknown_biz_types_and_broken_payloads_are_dead_with_a_reason(
    notes: Notes, eventually: Eventually
) -> None:
    notes.world.environ |= {"STREAMS_WORKER__UNKNOWN_DAYS": "0.00001"}
    notes.world.worker()
    bad = notes.enqueue("a", "x", biz_type="who_knows")
    for payload in (
        '{"book": "a"}',
        '{"book": "a", "note": 7}',
        '{"book": "a", "note": "\\u0000"}',
        '{"book": "a", "note": "\\ud800"}',
        "[" * 300 + "]" * 300,
        '{"book": "a", "note": null}',
        '"text"',
    ):
        [(one,)] = notes.world.query(
            "INSERT INTO outbox (biz_type, topic, key, payload)"
            " VALUES ('note_added', %s, 'a', %s::text::json) RETURNING id",
            notes.topic,
            payload,
        )
        bad.append(one)
    good = notes.enqueue("a", "a0")
    notes.publish(bad + good)
    await eventually(lambda: notes.all(good, "consumed"), 60)
    assert notes.all(bad, "dead"), notes.states(bad)
    reasons = [
        row[0]
        for row in notes.world.query(
            "SELECT error FROM outbox_state WHERE status = 'dead' ORDER BY 1"
        )
    ]
    assert all(reasons), reasons


# In `make test`: in one process in test_charges.py, and as a retry of a worker in test_parked.py.
@pytest.mark.long
async def test_a_handler_that_hangs_costs_one_message(notes: Notes, eventually: Eventually) -> None:
    notes.world.environ |= {
        "STREAMS_WORKER__HANDLER_TIMEOUT": "1",
        "STREAMS_WORKER__LOCK_TIMEOUT": "0.5",
    }
    worker = notes.world.worker()
    ids = notes.send("a", "a0", "hang:a1", "a2") + notes.send("b", *[f"b{n}" for n in range(50)])
    await eventually(lambda: notes.all(ids[3:], "consumed"), 90)
    await eventually(
        lambda: notes.states(ids[:3]) == {ids[0]: "consumed", ids[1]: "retrying", ids[2]: "parked"},
        90,
    )
    assert notes.world.query("SELECT error_code FROM outbox_state WHERE status = 'retrying'") == [
        ("timeout",)
    ]
    assert worker.running


async def test_a_handler_that_blocks_the_event_loop_ends_its_process(
    notes: Notes, eventually: Eventually
) -> None:
    notes.world.environ |= {
        "STREAMS_WORKER__HANDLER_TIMEOUT": "1",
        "STREAMS_WORKER__LOCK_TIMEOUT": "0.5",
    }
    worker = notes.world.worker()
    notes.send("a", "block:a0")
    await eventually(lambda: not worker.running, 60)
    assert "the event loop is blocked" in Path(notes.world.directory / "faust-0.log").read_text()


async def test_a_statement_that_cannot_work_for_one_message_is_that_messages_fault(
    notes: Notes, eventually: Eventually
) -> None:
    """Others of its kind work, in other partitions and other runs: nobody waits for it."""
    notes.fail("a0", "42883")
    notes.world.worker()
    ids = notes.send("b", *[f"b{n}" for n in range(20)])
    await eventually(lambda: notes.all(ids, "consumed"), 60)
    [bad] = notes.send("a", "a0")
    await eventually(lambda: notes.states([bad])[bad] in ("retrying", "dead"), 30)
    assert "a bug or a missing column" not in (notes.world.directory / "faust-0.log").read_text()


async def test_a_missing_column_waits_and_no_message_pays(
    notes: Notes, eventually: Eventually
) -> None:
    notes.world.query("ALTER TABLE notes RENAME COLUMN note TO moved")
    worker = notes.world.worker()
    ids = notes.send("a", "a0", "a1") + notes.send("b", "b0")
    log = Path(notes.world.directory / "faust-0.log")
    await eventually(lambda: "a bug or a missing column" in log.read_text(), 60)
    assert notes.states() == {}
    notes.world.query("ALTER TABLE notes RENAME COLUMN moved TO note")
    await eventually(lambda: notes.all(ids, "consumed"), 60)
    assert notes.world.query("SELECT DISTINCT attempts FROM outbox_state") == [(0,)]
    assert worker.running


async def test_a_worker_killed_before_it_acked_a_retrying_message(
    notes: Notes, eventually: Eventually
) -> None:
    notes.fail("a0")
    worker = notes.world.worker()
    ids = notes.send("a", "a0", "a1")
    await eventually(lambda: notes.states(ids)[ids[0]] == "retrying", 60, every=0.01)
    worker.kill()
    notes.mend()
    notes.world.worker()
    await eventually(lambda: notes.all(ids, "consumed"), 60)
    assert notes.saved("a") == ["a0", "a1"]


async def test_a_worker_killed_between_the_heads_commit_and_its_table(
    notes: Notes, eventually: Eventually
) -> None:
    """The database as such a worker leaves it.

    The head is consumed, nobody was told to go on with those behind it.
    """
    ids = notes.enqueue("a", "a0", "a1", "a2")
    notes.world.query(
        'INSERT INTO outbox_state (outbox_id, status, partition, "offset", arrived, topic, key)'
        " SELECT id, 'parked', 0, id, id, topic, key FROM outbox WHERE id = ANY(%s)",
        ids[1:],
    )
    notes.world.query(
        "INSERT INTO outbox_state (outbox_id, status, partition) VALUES (%s, 'consumed', 0)", ids[0]
    )
    notes.world.worker()
    await eventually(lambda: notes.all(ids, "consumed"), 60)
    assert notes.saved("a") == ["a1", "a2"]


async def test_retries_survive_the_loss_of_fausts_tables(
    notes: Notes, eventually: Eventually
) -> None:
    notes.fail("a0")
    worker = notes.world.worker()
    ids = notes.send("a", "a0", "a1")
    await eventually(lambda: notes.states(ids) == {ids[0]: "retrying", ids[1]: "parked"}, 60)
    worker.kill()
    group = notes.world.settings.worker.group
    admin = AdminClient({"bootstrap.servers": notes.world.settings.broker_url})
    lost = [f"{group}-{notes.topic}-{table}-changelog" for table in ("retries", "dead")]
    for future in admin.delete_topics(lost).values():
        future.result(30)
    notes.mend()
    notes.world.worker()
    await eventually(lambda: notes.all(ids, "consumed"), 60)
    assert notes.saved("a") == ["a0", "a1"]


async def test_two_groups_claiming_the_same_messages_make_no_deadlock(
    notes: Notes, eventually: Eventually
) -> None:
    notes.fail("a7")
    ids = notes.enqueue_each([(book, f"{book}{n}") for n in range(150) for book in "abcd"])
    notes.publish(ids)
    workers = [
        notes.world.worker(),
        notes.world.worker(STREAMS_WORKER__GROUP=f"{notes.world.settings.worker.group}-2"),
    ]
    await eventually(
        lambda: len(notes.states(ids)) == 600 and "" not in notes.states(ids).values(), 90
    )
    notes.mend()
    await eventually(lambda: notes.all(ids, "consumed"), 60)
    for book in "abcd":
        assert notes.saved(book) == [f"{book}{n}" for n in range(150)]
    assert all(worker.running for worker in workers)
