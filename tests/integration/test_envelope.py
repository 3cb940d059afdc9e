"""Envelope topics on a real worker: another system's producer stays as it is.

Its messages get the same fate as ours.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest
from click.testing import CliRunner, Result
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from streams.broker import kafka
from streams.cli import cli
from streams.envelope import DELETED
from tests.conftest import Eventually, World
from tests.fixtures.publish import commit
from tests.fixtures.seed import Seed

Run = Callable[..., Result]
CHAT = {"user_id": 7, "conversation_id": "c", "role": "user", "message": "hi \u00e9 \U0001f40d"}


@pytest.fixture
def seed(world: World, tmp_path: Path) -> Seed:
    """Notes from another system, that fail on demand."""
    return Seed(world, tmp_path)


@pytest.fixture
def run(seed: Seed, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run one command in this world."""
    for name, value in seed.world.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(seed.world.environ["PYTHONPATH"])
    sys.modules.pop("notebook", None)  # that of another test
    return lambda *arguments, lines=None: CliRunner().invoke(
        cli, arguments, input=lines, standalone_mode=False
    )


def envelope(
    outbox_id: object, payload: object = CHAT, biz_type: object = "chat_history_persist"
) -> bytes:
    return orjson.dumps({"outbox_id": outbox_id, "biz_type": biz_type, "payload": payload})


def titles(run: Run, code: str) -> list[str]:
    """What `streams status` says of this kind of fault."""
    told = json.loads(run("status", "--json").output)["faults"]
    return [each["title"] for each in told if each["code"] == code]


async def test_messages_are_persisted_once_beside_ours_with_the_same_ids(
    seed: Seed, run: Run, eventually: Eventually
) -> None:
    ours = seed.notes.send("a", "ours 0", "ours 1")
    ids = seed.send("a", "a0", "a1", "a2")
    assert ours == ids[:2]
    as_text = envelope("14", orjson.dumps({"book": "a", "note": "a3"}).decode(), "mark_added")
    seed.raw(as_text, as_text, key="a")
    seed.raw(envelope(15))
    seed.send("b", "b0", key="another key")
    seed.again("a", "a0", "a1")
    seed.world.worker()
    await eventually(lambda: seed.all([1, 2, 3, 4, 14, 15], "consumed"), 60)
    await eventually(lambda: seed.notes.all(ours, "consumed"), 30)
    assert (seed.saved("a"), seed.saved("b")) == (["a0", "a1", "a2", "a3"], ["b0"])
    assert seed.world.query("SELECT note FROM notes WHERE source = '' ORDER BY id") == [
        ("ours 0",),
        ("ours 1",),
    ]
    assert seed.world.query(
        "SELECT source, outbox_id, chat_id, message_content FROM chat_histories"
    ) == [("seed", 15, "c", CHAT["message"])]
    [(topic, key, payload)] = seed.world.query(
        "SELECT topic, key, payload FROM outbox_foreign WHERE outbox_id = 4"
    )
    assert (topic, key, payload) == (seed.topic, "b", None)
    assert seed.world.query("SELECT count(*) FROM outbox_rejects") == [(0,)]
    told = run("topic", "tail", seed.topic, "--from-beginning", "-n", "9").output
    assert "id=15 biz_type=chat_history_persist key=null" in told


async def test_bad_envelopes_are_rejected_and_what_cannot_be_read_is_dead(
    seed: Seed, eventually: Eventually
) -> None:
    numbers = (None, True, 0, -1, 1.5, 2**63, 10**30, "", "x", "1 ", "\u0663", [1], {"id": 1})
    bad = [
        None, b"", b"{", b"\xff\xfe", b"null", b"[1]", b'"text"', b"7", b"\x00", b"{}",
        b'{"outbox_id": 1}',
        b"[" * 5000, b'{"outbox_id": 1, "biz_type": "b", "payload": "\\ud800"}',
        b'{"outbox_id": 1, "biz_type": "b"}',
        b'{"outbox_id": 1, "payload": {}}', b'{"outbox_id": 1, "biz_type": 5, "payload": {}}',
        b'{"outbox_id": 1, "biz_type": "b", "payload": {"secret-canary": }}',
        *[json.dumps({"outbox_id": n, "biz_type": "b", "payload": {}}).encode() for n in numbers],
    ]  # fmt: skip
    dead: list[object] = [
        {"user_id": 1}, CHAT | {"user_id": "secret-canary"}, CHAT | {"message": None},
        CHAT | {"message": "\0"},
        CHAT | {"conversation_id": ""}, CHAT | {"conversation_id": "x" * 1025}, None, [1], 7, "",
        "secret-canary {", "[1]",
    ]  # fmt: skip
    seed.raw(*bad, key=b"\xff")
    seed.raw(*[envelope(100 + n, payload) for n, payload in enumerate(dead)], key="some key")
    seed.raw(envelope(200, {}, "who_knows\0"),
    b'{"outbox_id": 201, "biz_type": "mark_added", "payload": ' + b"[" * 300
             + b"]" * 300 + b"}", envelope(300))  # fmt: skip
    worker = seed.world.worker(STREAMS_WORKER__UNKNOWN_DAYS="0.00001")
    await eventually(lambda: seed.all([300], "consumed"), 60)
    broken = [100 + n for n in range(len(dead))] + [200, 201]
    await eventually(lambda: seed.all(broken, "dead"), 30)
    reasons = dict(
        seed.world.query("SELECT outbox_id, error FROM outbox_foreign WHERE status = 'dead'")
    )
    assert reasons[101] == "'user_id': expected int, got str"
    assert reasons[104] == "'conversation_id': expected 1 to 1024 bytes, it is the key"
    assert reasons[200].startswith("unknown biz_type 'who_knows")
    assert all(reasons.values())
    ranges = seed.world.query("SELECT reason, count FROM outbox_rejects ORDER BY id")
    assert sum(count for _, count in ranges) == len(bad)
    rejects = [reason for reason, _ in ranges]
    assert "the value is null, expected an envelope" in rejects
    assert "the value is no envelope: expected object, got array" in rejects
    assert "the envelope's 'payload' is missing (outbox_id 1)" in rejects
    assert (
        "canary"
        not in str(reasons) + str(rejects) + (seed.world.directory / "faust-0.log").read_text()
    )
    kept = dict(
        seed.world.query("SELECT outbox_id, key FROM outbox_foreign WHERE payload IS NOT NULL")
    )
    assert kept == {one: "some key" if one in (100, 104, 105, *range(106,
    112)) else "c" for one in broken[:-2]} | {
        200: "", 201: "",
    }  # fmt: skip
    assert worker.running
    # What another system calls a thing may be no text that PostgreSQL stores: it is counted.
    figures = "SELECT sum(dead) FROM outbox_stats WHERE biz_type = '(unknown)'"
    await eventually(lambda: seed.world.query(figures) == [(1,)], 30)
    assert "figures not written" not in (seed.world.directory / "faust-0.log").read_text()


async def test_a_failing_message_is_retried_and_its_conversation_keeps_its_order(
    seed: Seed, run: Run, eventually: Eventually
) -> None:
    seed.notes.fail("a1")
    seed.world.worker()
    ids = seed.send("a", "a0", "a1", "a2", "a3")
    others = seed.send("b", "b0", "b1")
    await eventually(lambda: seed.all(others, "consumed"), 60)
    await eventually(
        lambda: list(seed.states(ids).values()) == ["consumed", "retrying", "parked", "parked"], 30
    )
    [head] = json.loads(run("conversations", "list", "--json").output)
    assert (head["head"], head["status"], head["open"]) == ("seed:2", "retrying", 3)
    assert run("conversations", "list", "--source", "").output == "no conversation waits\n"
    counted = json.loads(run("status", "--json").output)["messages"]
    assert (counted["retrying"], counted["parked"], counted["dead"]) == (1, 2, 0)
    stories = json.loads(run("trace", "--key", "a", "--source", "seed", "--json").output)
    assert [each["outbox_id"] for each in stories] == [f"seed:{one}" for one in ids]
    assert stories[2]["events"][-1]["about"] == {"behind": "seed:2"}
    kept = seed.world.query("SELECT payload FROM outbox_foreign WHERE open ORDER BY arrived")
    assert [orjson.loads(text)["note"] for (text,) in kept] == ["a1", "a2", "a3"]
    seed.again("a", "a0", "another text", "a2")
    last = seed.send("a", "a4")
    await eventually(lambda: seed.all(last, "parked"), 30)
    await eventually(
        lambda: seed.world.query("SELECT max(attempts) FROM outbox_foreign") >= [(3,)], 30
    )
    seed.notes.mend()
    await eventually(lambda: seed.all(ids + last, "consumed"), 30)
    assert seed.saved("a") == [f"a{n}" for n in range(5)]
    left = (
        "SELECT count(*) FROM outbox_foreign"
        " WHERE open OR payload IS NOT NULL OR next_retry_at IS NOT NULL"
    )
    assert seed.world.query(left) == [(0,)]
    applied = seed.world.query(
        "SELECT outbox_id FROM outbox_foreign WHERE key = 'a' ORDER BY applied"
    )
    assert [one for (one,) in applied] == ids + last


async def test_the_dead_are_replayed_edited_and_discarded(
    seed: Seed, run: Run, eventually: Eventually
) -> None:
    for note in ("a0", "a1", "a3"):
        seed.notes.fail(note, "22003")
    worker = seed.world.worker()
    ids = seed.send("a", "a0", "a1", "a2", "a3", "reject:a4")
    seed.raw(envelope(90, {"book": 5, "note": "n"}, "note_added"), envelope(91, {}, "note_added"))
    await eventually(
        lambda: list(seed.states(ids).values()) == ["dead", "dead", "consumed", "dead", "dead"], 60
    )
    await eventually(lambda: seed.all([90, 91], "dead"), 30)
    seed.again("a", "a0")
    later = seed.send("a", "later")
    await eventually(lambda: seed.all(later, "consumed"), 30)
    await worker.stop()
    seed.notes.mend()
    assert (
        run("dead", "replay", "--key", "a", "--error", "22003", "--yes").output
        == "replayed 3 messages\n"
    )
    fixed = json.dumps({"book": "a", "note": "a4"})
    edited = run(
        "dead", "replay", "seed:5", "--payload", "-", "--who", "ann", "--why", "mended", lines=fixed
    )
    assert edited.output == "replayed message seed:5 with the new payload\n"
    assert run("dead", "discard", "seed:90").output == "discarded 1 message\n"
    assert run("dead", "replay", "seed:91").output == "replayed 1 message\n"
    assert seed.states(ids) == {one: "consumed" if one == ids[2] else "retrying" for one in ids}
    seed.world.worker()
    await eventually(lambda: seed.all(ids, "consumed"), 60)
    assert seed.saved("a") == ["a2", "later", "a0", "a1", "a3", "a4"]
    await eventually(lambda: seed.states([90, 91]) == {90: "discarded", 91: "dead"}, 30)
    [(payload, replaced)] = seed.world.query(
        "SELECT payload, replaced FROM outbox_foreign WHERE outbox_id = 5"
    )
    assert (payload, orjson.loads(replaced)["note"]) == (None, "reject:a4")
    story = json.loads(run("trace", "seed:5", "--json").output)
    assert [event["stage"] for event in story["events"]] == [
        "produced",
        "relayed",
        "dead",
        "replay",
        "persisted",
    ]
    assert story["events"][3]["about"] == {"who": "ann", "why": "mended"}


async def test_a_dead_message_holds_the_conversation_that_it_names(
    world: World, tmp_path: Path, eventually: Eventually
) -> None:
    seed = Seed(world, tmp_path, on_dead="hold")
    world.worker()
    ids = seed.send("a", "a0", "reject:a1", "a2")
    broken = [
        envelope(70 + n, payload, "note_added")
        for n, payload in enumerate([{"book": "b"}, {"note": "no book"}])
    ]
    seed.raw(*broken, envelope(72, {"book": "b", "note": "b0"}, "note_added"), key=b"\0")
    expected = ["consumed", "dead", "parked", "dead", "dead", "parked"]
    await eventually(lambda: list(seed.states([*ids, 70, 71, 72]).values()) == expected, 60)
    assert world.query("SELECT outbox_id FROM outbox_foreign WHERE open ORDER BY 1") == [
        (2,),
        (3,),
        (70,),
        (72,),
    ]


async def test_a_conversation_in_several_partitions_waits_as_one(
    seed: Seed, eventually: Eventually
) -> None:
    """Records without a key go anywhere.

    Then there is no order to keep, but nothing gets past a message that waits.
    """
    seed.notes.fail("first")
    seed.world.worker()
    first = seed.send("a", "first", key=None)
    await eventually(lambda: seed.all(first, "retrying"), 60)
    later = [one for n in range(20) for one in seed.send("a", f"a{n}", key=None)]
    await eventually(lambda: seed.all(later, "parked"), 30)
    assert len(seed.world.query("SELECT DISTINCT partition FROM outbox_foreign")) == 2
    seed.notes.mend()
    await eventually(lambda: seed.all(first + later, "consumed"), 60)
    assert seed.saved("a")[0] == "first"


async def test_a_worker_killed_in_the_middle_leaves_one_effect_each(
    seed: Seed, eventually: Eventually
) -> None:
    books = "abcdefgh"
    ids = [one for n in range(40) for book in books for one in seed.send(book, f"{book}{n}")]
    # Behind some hundred notes each run waits in its transaction.
    seed.world.query(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF (SELECT count(*) FROM notes) > 100 THEN PERFORM pg_advisory_xact_lock_shared(4711);"
        " END IF; RETURN NULL; END $$"
    )
    seed.world.query("CREATE TRIGGER wait AFTER INSERT ON notes EXECUTE FUNCTION wait()")
    waits = (
        "SELECT 1 FROM pg_locks JOIN pg_database AS d ON d.oid = database"
        " WHERE datname = current_database() AND locktype = 'advisory' AND classid = 0"
        " AND objid = 4711 AND NOT granted"
    )
    with psycopg.connect(seed.world.url, autocommit=True) as gate:
        gate.execute("SELECT pg_advisory_lock(4711)")
        worker = seed.world.worker(STREAMS_WORKER__RUN_RECORDS="20")
        await eventually(lambda: seed.world.query(waits), 60)
        worker.kill()
        assert 60 < len(seed.states()) < len(ids)
    seed.world.query("DROP TRIGGER wait ON notes")
    seed.world.worker()
    await eventually(lambda: seed.all(ids, "consumed"), 60)
    for book in books:
        assert seed.saved(book) == [f"{book}{n}" for n in range(40)]


async def test_a_worker_goes_on_where_the_old_consumers_committed(
    seed: Seed, eventually: Eventually
) -> None:
    """And leaves alone what an operator notes as persisted by them after that."""
    seed.world.environ["STREAMS_WORKER__GROUP"] = group = f"{seed.world.settings.worker.group}-old"
    seed.send("a", *[f"a{n}" for n in range(6)])
    ends = seed.ends()
    [partition] = [number for number, end in ends.items() if end]
    commit(seed.world.settings.broker_url, group, seed.topic, {partition: 3})
    seed.world.query(
        "INSERT INTO outbox_foreign (source, outbox_id, status) VALUES ('seed', 4, 'consumed')"
    )
    seed.world.worker()
    await eventually(lambda: seed.all([4, 5, 6], "consumed"), 60)
    assert seed.saved("a") == ["a4", "a5"]
    assert set(seed.states()) == {4, 5, 6}


async def test_the_audit_compares_states_and_effects(
    seed: Seed, run: Run, eventually: Eventually
) -> None:
    def audit() -> Any:
        return json.loads(
            run("audit", "--json", "--full", "--patience", "5", "--grace", "3600").output
        )

    worker = seed.world.worker()
    seed.raw(
        *[envelope(n, CHAT | {"conversation_id": f"c{n}"}) for n in range(1, 9)], envelope(9, {})
    )
    await eventually(lambda: len(seed.states()) == 9, 60)
    found = audit()
    assert (found["ok"], found["foreign"]) == (True, {"seed": 9}), found
    worker.kill()
    spoiled = {
        3: "status = 'dead', applied = NULL",
        5: "applied = NULL",
        6: "open = true",
        7: "status = 'parked', applied = NULL",
        9: "status = 'retrying', open = true, arrived = 1, next_retry_at = now() - interval '2 h'",
    }
    for outbox_id, changes in spoiled.items():
        seed.world.query(f"UPDATE outbox_foreign SET {changes} WHERE outbox_id = %s", outbox_id)
    seed.world.query("DELETE FROM chat_histories WHERE outbox_id = 2")
    seed.world.query("DELETE FROM outbox_foreign WHERE outbox_id = 4")
    # Taken over: persisted by others.
    seed.world.query(
        "INSERT INTO outbox_foreign (source, outbox_id, status) VALUES ('seed', 50, 'consumed')"
    )
    wrong = {
        kind: [one.get("outbox_id") for one in each["examples"]]
        for kind, each in audit()["wrong"].items()
    }
    # Whether the group has noticed yet that its worker is gone is another matter.
    wrong.pop("no_sign_of_life", None)
    assert wrong == {
        "no_effect": ["seed:2"],
        "unclaimed_effect": ["seed:3", "seed:4", "seed:7"],
        "flipped": ["seed:5"],
        "blocking": ["seed:6"],
        "forgotten": ["seed:7"],
        "stuck": ["seed:9"],
        "wrong_tally": [None],
    }


async def test_a_message_that_workers_passed_without_a_trace_is_found(
    seed: Seed, run: Run, eventually: Eventually
) -> None:
    """With an effect that says how it is recognised (chats), and without (notes)."""

    def audit(*options: str) -> list[dict[str, Any]]:
        told = run("audit", "--json", "--patience", "2", "--grace", "3600", *options)
        found: list[dict[str, Any]] = json.loads(told.output)["wrong"].get(
            "skipped", {"examples": []}
        )["examples"]
        return found

    worker = seed.world.worker()
    notes = seed.send("a", "a0", "a1", "a2")
    chats = [10, 11, 12]
    seed.raw(*[envelope(n, CHAT) for n in chats], b"no envelope", key="a")
    await eventually(lambda: seed.all([*notes, *chats], "consumed"), 60)
    await eventually(lambda: seed.world.query("SELECT count(*) FROM outbox_rejects") == [(1,)])
    await worker.stop(grace=60)
    assert audit() == []
    assert audit("--full") == []
    # As when a run was acked whose transaction was rolled back.
    seed.world.query("DELETE FROM outbox_foreign WHERE outbox_id IN (2, 11)")
    seed.world.query("DELETE FROM notes WHERE outbox_id = 2")
    seed.world.query("DELETE FROM chat_histories WHERE outbox_id = 11")
    # A range of rejects is from the first to the last of them: what is between them was not.
    seed.world.query('UPDATE outbox_rejects SET "offset" = 0, last_offset = "offset" + 100')
    assert [one.get("outbox_id") for one in audit("--full")] == ["seed:2", "seed:11"]
    seed.world.query("DELETE FROM outbox_rejects")
    lost = audit("--full")
    assert [one.get("outbox_id") for one in lost] == ["seed:2", "seed:11", None]
    assert {one["topic"] for one in lost} == {seed.topic}
    assert audit() == []  # reported once, and again by a full one
    seed.send("b", "b0")
    old = json.loads(
        run("audit", "--json", "--patience", "0", "--grace", "3600", "--age", "0").output
    )["wrong"]
    assert set(old) == {"unread", "no_sign_of_life"}
    [unread] = old["unread"]["examples"]
    assert (unread["topic"], unread["end"] - (unread.get("committed") or 0)) == (seed.topic, 1)
    assert old["no_sign_of_life"]["examples"] == [
        {"who": "workers", "group": seed.world.settings.worker.group}
    ]


async def test_messages_that_wait_on_a_topic_that_was_left_out_of_the_settings_are_told(
    seed: Seed, run: Run, eventually: Eventually
) -> None:
    def unserved() -> list[str]:
        return titles(run, "topic.unserved")

    worker = seed.world.worker()
    ids = seed.send("a", "a0", "a1")
    await eventually(lambda: seed.all(ids, "consumed"), 60)
    assert unserved() == []
    await worker.stop(grace=60)
    seed.world.query(
        "UPDATE outbox_foreign SET status = 'retrying', open = true, applied = NULL, arrived = 1,"
        " next_retry_at = now() + interval '1 hour' WHERE outbox_id = %s",
        ids[1],
    )
    settings = Path(seed.world.environ["STREAMS_CONFIG"])
    settings.write_text(re.sub(r"seed-messages: \{[^}]*\}, ", "", settings.read_text()))
    seed.world.worker()
    # A minute after the last sign of the worker before.
    seed.world.query(
        "UPDATE outbox_lag SET at = at - interval '2 minutes' WHERE topic = %s", seed.topic
    )
    told = f"1 message waits on topic {seed.topic}, which no worker reads any more"
    await eventually(lambda: unserved() == [told], 60)


async def test_a_topic_that_was_made_anew_has_rejects_of_its_own(
    seed: Seed, run: Run, eventually: Eventually
) -> None:
    """What was noted of the topic that had its name before covers none of its records."""

    def rejects() -> list[tuple[int, int, int, str]]:
        return seed.world.query(
            'SELECT "offset", last_offset, count, reason FROM outbox_rejects ORDER BY at'
        )

    worker = seed.world.worker()
    seed.raw(None, None, None, b"[]", None, key="a")
    null = "the value is null, expected an envelope"
    broken = "the value is no envelope: expected object, got array"
    await eventually(lambda: rejects() == [(0, 4, 4, null), (3, 3, 1, broken)], 60)
    await worker.stop(grace=60)
    admin = AdminClient(kafka.client(seed.world.settings))
    admin.delete_topics([seed.topic])[seed.topic].result(10)
    await eventually(lambda: seed.topic not in admin.list_topics(timeout=10).topics)
    kafka.prepare_topics(seed.world.settings, [seed.topic])
    seed.raw(b"[]", key="a")
    again = seed.world.worker()
    await eventually(lambda: rejects() == [(3, 3, 1, broken), (0, 0, 1, broken)], 60)
    [later] = seed.send("a", "a0")
    seed.raw(None, key="a")
    await eventually(lambda: rejects()[-1] == (2, 2, 1, null), 60)
    await again.stop(grace=60)
    seed.world.query("DELETE FROM outbox_foreign WHERE outbox_id = %s", later)
    seed.world.query("DELETE FROM notes")
    told = run("audit", "--json", "--full", "--patience", "0", "--grace", "3600").output
    found = json.loads(told)["wrong"]["skipped"]["examples"]
    assert [each["outbox_id"] for each in found] == [f"seed:{later}"]


async def test_what_was_forgotten_in_time_has_an_effect_that_nobody_has_to_claim(
    seed: Seed, run: Run, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its neighbours one was dead for long, and replayed since."""

    def unclaimed() -> list[str]:
        told = run("audit", "--json", "--full", "--patience", "0", "--grace", "3600").output
        found = json.loads(told)["wrong"].get("unclaimed_effect", {"examples": []})
        return [each["outbox_id"] for each in found["examples"]]

    worker = seed.world.worker()
    seed.raw(*[envelope(n, CHAT) for n in range(1, 6)], key="a")
    await eventually(lambda: seed.all([1, 2, 3, 4, 5], "consumed"), 60)
    await worker.stop(grace=60)
    seed.world.query(
        "UPDATE outbox_foreign SET created_at = now() - interval '40 days' WHERE outbox_id = 1"
    )
    seed.world.query("DELETE FROM outbox_foreign WHERE outbox_id IN (2, 3, 5)")
    assert unclaimed() == ["seed:2", "seed:3", "seed:5"]
    monkeypatch.setenv("STREAMS_OUTBOX__FOREIGN_DAYS", "30")
    assert unclaimed() == ["seed:5"]


@pytest.mark.parametrize("when", ["under a worker", "while none runs", "and nothing came after it"])
async def test_what_kafka_deleted_before_it_was_read_is_told_for_its_producer_alone_has_it(
    seed: Seed, run: Run, eventually: Eventually, when: str
) -> None:
    running, alone = when == "under a worker", when == "and nothing came after it"

    def faults() -> list[str]:
        return titles(run, "records.deleted")

    worker = seed.world.worker()
    first = seed.send("a", "a0", "a1")
    await eventually(lambda: seed.all(first, "consumed"), 60)
    [partition] = [number for number, end in seed.ends().items() if end]
    if running:
        os.kill(worker.pid or 0, signal.SIGSTOP)
    else:
        await worker.stop(grace=60)
    try:
        seed.send("a", "a2", "a3", "a4")
        lost = TopicPartition(seed.topic, partition, 5)
        admin = AdminClient(kafka.client(seed.world.settings))
        for future in admin.delete_records([lost]).values():
            future.result(10)
        later = seed.send("a", "a5") if not alone else []
    finally:
        if running:
            os.kill(worker.pid or 0, signal.SIGCONT)
    if not running:
        assert faults() == []
        worker = seed.world.worker()
    if alone:
        await eventually(lambda: "nothing came after them yet" in worker.log.read_text(), 60)
        later = seed.send("a", "a5")
    await eventually(lambda: seed.all(later, "consumed"), 60)
    # What was on its way to a worker that was stopped is not lost.
    [(begin,)] = seed.world.query("SELECT count(*) FROM outbox_foreign WHERE outbox_id < 6")
    assert begin < 5 if running else begin == 2
    told = (
        f"Kafka deleted up to {5 - begin} records of topic {seed.topic}, partition {partition},"
        f" before anybody read them: offsets {begin} to 4"
    )
    assert faults() == [told]
    assert seed.world.query('SELECT "offset", last_offset, count, reason FROM outbox_rejects') == [
        (begin, 4, 5 - begin, DELETED)
    ]
    # Sent again by their producer they are persisted, as if nothing had been.
    seed.again("a", *(f"a{n}" for n in range(6)))
    await eventually(lambda: seed.all(list(range(1, 7)), "consumed"), 60)
    order = [*range(begin), 5, *range(begin, 5)]
    assert seed.saved("a") == [f"a{n}" for n in order]
