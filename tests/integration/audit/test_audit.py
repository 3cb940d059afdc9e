"""The audit on a real system: clean in every state, incremental, repairing.

It says no word about what is only late.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from confluent_kafka import Consumer, TopicPartition

from streams.audit import KINDS, examine
from streams.broker import kafka
from streams.broker.partitioner import partition_of
from streams.cli import cli
from tests.conftest import World
from tests.fixtures.publish import Publisher, commit
from tests.fixtures.records import records
from tests.integration.audit.conftest import CHATS, SLOW
from tests.integration.audit.spoil import GRACE, SWAP_APPLIED, Report, chat, lose_a_replay, named

Audit = Callable[..., Report]


def test_a_system_in_every_state_is_clean(copy: World, audit: Callable[..., Report]) -> None:
    for arguments in (["--full"], [], ["--full"]):
        report = audit(*arguments)
        assert report["wrong"] == {}
        assert report["ok"]
    assert report["messages"] == 3000 + 6 + 6 + 3
    assert report["late"] == 1
    assert list(report["lagging"]) == [copy.topic]
    # Open, dead, and behind: to be looked at again.
    assert report["left"] == 6 + 4 + 3
    assert copy.query("SELECT count(*), min(wrong), max(wrong) FROM outbox_audits") == [(3, 0, 0)]


def push(world: World, group: str, change: Callable[[int, int], int]) -> None:
    """Offsets of a group of its own: the system's, changed (partition, offset)."""
    system = Consumer({"bootstrap.servers": world.settings.broker_url, "group.id": "audited"})
    try:
        committed = system.committed(
            [TopicPartition(world.topic, number) for number in range(8)], timeout=10
        )
    finally:
        system.close()
    offsets = {each.partition: change(each.partition, max(each.offset, 0)) for each in committed}
    commit(world.settings.broker_url, group, world.topic, offsets)


def test_a_topic_that_somebody_knew_before_this_one_is_told_from_it(
    copy: World, audit: Audit
) -> None:
    """Relay and workers note which topics they work with.

    At the first audit the offsets of two topics are not mixed up.
    """
    assert copy.query(
        "SELECT count(*) FROM outbox_topics WHERE topic = %s AND partitions = 8", copy.topic
    ) == [(1,)]
    one, other = chat(copy)[:2]
    copy.query(
        'UPDATE outbox_state SET ("partition", "offset") = (SELECT "partition",'
        ' "offset" FROM outbox_state'
        " WHERE outbox_id = %s) WHERE outbox_id = %s",
        one,
        other,
    )
    assert set(audit("--full")["wrong"]) == {"same_place"}
    copy.query("INSERT INTO outbox_topics VALUES (%s, 'earlier', 'cluster', 8)", copy.topic)
    report = audit("--full")
    assert report["wrong"] == {}
    assert f"topic {copy.topic} began anew: order across that is judged by id" in report["notes"]


def test_offsets_committed_past_records_without_state(copy: World, audit: Audit, name: str) -> None:
    """What was only behind is lost for good once somebody pushes the offsets past it."""
    slow = partition_of(SLOW, 8)
    ends = {r.partition: r.offset + 1 for r in records(copy.settings.broker_url, copy.topic)}
    push(copy, name, lambda partition, offset: ends[slow] if partition == slow else offset)
    copy.environ["STREAMS_WORKER__GROUP"] = name
    report = audit()
    assert set(report["wrong"]) == {"skipped"}
    examples = report["wrong"]["skipped"]["examples"]
    assert [each["outbox_id"] for each in examples] == [
        row[0] for row in copy.query("SELECT id FROM outbox WHERE key = %s ORDER BY id", SLOW)
    ]
    assert all(each["partition"] == slow and each["offset"] < ends[slow] for each in examples)


def test_offsets_committed_behind_the_end(copy: World, audit: Audit, name: str) -> None:
    push(copy, name, lambda partition, offset: 10**6 if partition == 0 else offset)
    copy.environ["STREAMS_WORKER__GROUP"] = name
    assert "committed_beyond_end" in audit("--full")["wrong"]


def test_a_lost_message_is_sent_again_once(copy: World, audit: Audit) -> None:
    ids = chat(copy, "c5")[10:13]
    copy.query("DELETE FROM outbox_state WHERE outbox_id = ANY(%s)", ids)
    copy.query("DELETE FROM chat_histories WHERE outbox_id = ANY(%s)", ids)
    copy.query("UPDATE agent_chats SET message_count = message_count - 1 WHERE chat_id = 'c5'")
    report = audit("--full", "--repair")
    assert (set(report["wrong"]), report["repaired"]) == ({"skipped"}, 3)
    before = copy.query("SELECT resend_of FROM outbox ORDER BY id DESC LIMIT 3")
    assert [row[0] for row in before] == ids[::-1]
    [(who, act, what)] = copy.query(
        "SELECT who, act, what->'ids' FROM outbox_actions WHERE act = 'repair'"
    )
    assert ("@" in who, act, what) == (True, "repair", ids)
    again = audit("--repair")
    assert (again["ok"], again["repaired"]) == (True, 0)


def test_a_lost_replay_is_sent_again(copy: World, audit: Audit) -> None:
    one = lose_a_replay(copy)
    report = audit("--repair")
    assert report["repaired"] == 4 + 1  # and those that the relay never published
    [(source, payload_of)] = copy.query(
        "SELECT s.source_id, o.resend_of FROM outbox_state AS s JOIN outbox AS o"
        " ON o.id = s.source_id WHERE s.outbox_id = %s",
        one,
    )
    assert payload_of == one
    assert source > copy.query("SELECT max(floor) FROM relay_position")[0][0]
    assert audit()["ok"]


def test_a_finding_stays_reported_until_it_is_mended(copy: World, audit: Audit) -> None:
    assert audit()["ok"]
    [one, *_] = chat(copy, "c6")
    copy.query("DELETE FROM chat_histories WHERE outbox_id = %s", one)
    assert audit()["ok"]  # incremental: that was looked at, and settled
    assert set(audit("--full")["wrong"]) == {"no_effect", "wrong_tally"}
    assert named(audit(), "no_effect") == {one}
    copy.query("UPDATE outbox_state SET status = 'dead', applied = NULL WHERE outbox_id = %s", one)
    assert audit()["ok"]


def test_order_holds_across_ranges_and_audits(
    copy: World, audit: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examine, "WIDTH", 500)
    ids = chat(copy, "c7")
    first, last = ids[2], ids[-2]
    copy.query(SWAP_APPLIED.replace("%(id)s", str(first)).replace("%(next)s", str(last)))
    report = audit("--full")
    assert "out_of_order" in report["wrong"]
    assert {first, last} & named(report, "out_of_order")
    # Audited when there was only the beginning: the rest is compared with it later.
    copy.query("UPDATE relay_position SET floor = %s", ids[20])
    whole = copy.query("SELECT max(floor) FROM relay_position")
    audit("--full")
    copy.query("UPDATE relay_position SET floor = %s", 3000)
    later = audit()
    assert whole and {first, last} & named(later, "out_of_order")


def test_an_open_message_that_is_persisted_out_of_turn_is_found_later(
    copy: World, audit: Audit
) -> None:
    """It was left by the first audit, its conversation had been looked at."""
    one, after = chat(copy, "c8")[5:7]
    [applied] = copy.query("SELECT applied FROM outbox_state WHERE outbox_id = %s", one)
    history = copy.query("SELECT * FROM chat_histories WHERE outbox_id = %s", one)[0]
    copy.query("DELETE FROM chat_histories WHERE outbox_id = %s", one)
    copy.query(
        "UPDATE outbox_state SET status = 'retrying', applied = NULL, arrived = 1, topic = %s, key"
        " = 'c8', next_retry_at = now() WHERE outbox_id = %s",
        copy.topic,
        one,
    )
    copy.query(
        "UPDATE agent_chats SET message_count = message_count - 1 WHERE chat_id = 'c8'"
        " AND user_id = %s",
        history[3],
    )
    assert audit("--full")["ok"]
    copy.query(
        "INSERT INTO chat_histories OVERRIDING SYSTEM VALUE VALUES ("
        + ", ".join(["%s"] * len(history))
        + ")",
        *history,
    )
    copy.query(
        "UPDATE outbox_state SET status = 'consumed', applied = nextval('outbox_applied'), topic ="
        " NULL, key = NULL, next_retry_at = NULL WHERE outbox_id = %s",
        one,
    )
    report = audit()
    assert set(report["wrong"]) == {"out_of_order"}
    assert {one, after} <= named(report, "out_of_order")
    assert applied


def test_a_payload_that_postgresql_cannot_read_is_skipped_not_fatal(
    copy: World, audit: Audit
) -> None:
    one = chat(copy)[4]
    copy.query(
        'UPDATE outbox SET payload = (left(payload::text, -1) || \',"extra":"a\\u0000b"}\')::json'
        " WHERE id = %s",
        one,
    )
    report = audit("--full")
    assert report["ok"]
    assert "1 payloads could not be compared: PostgreSQL cannot read them" in report["notes"]


def test_without_kafka_there_is_no_verdict(copy: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (copy.environ | {"BROKER_URL": "127.0.0.1:1"}).items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(cli, ["audit"], standalone_mode=False)
    assert "Kafka at 127.0.0.1:1 cannot be reached" in str(result.exception)
    assert copy.query("SELECT count(*) FROM outbox_audits") == [(0,)]


def test_a_person_reads_what_is_wrong(copy: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in copy.environ.items():
        monkeypatch.setenv(name, value)
    arguments = ["audit", "--full", "--grace", GRACE, "--patience", "0"]
    assert CliRunner().invoke(cli, arguments).output.endswith("nothing is wrong\n")
    one = chat(copy)[3]
    copy.query("DELETE FROM chat_histories WHERE outbox_id = %s", one)
    output = CliRunner().invoke(cli, arguments).output
    assert f"no_effect: 1 (consumed, but its effect is not there)\n  outbox_id {one}" in output
    assert output.endswith("something is wrong\n")


def test_partitions_are_found_as_kafka_finds_them(system: World) -> None:
    """On every record of the topic, and on keys of all lengths and scripts."""
    keys = [
        "",
        "a",
        "ab",
        "abc",
        "abcd",
        "abcde",
        "caf\u00e9",
        "\u4f60\u597d",
        "x" * 1000,
        "\U0001f600",
    ]
    name = "audited.keys"
    topics_of = {
        record.key.decode(): record.partition
        for record in records(system.settings.broker_url, system.topic)
    }
    assert len(topics_of) > CHATS
    assert {key: partition_of(key, 8) for key in topics_of} == topics_of
    kafka.prepare_topics(system.settings, [name])
    with Publisher(system.settings.broker_url, name) as publisher:
        for key in keys:
            publisher.send(1, key, b"{}")
    assert {r.key.decode(): r.partition for r in records(system.settings.broker_url, name)} == {
        key: partition_of(key, 8) for key in keys
    }


def test_the_docs_name_every_kind() -> None:
    page = (Path(__file__).parents[3] / "docs" / "audit.md").read_text(encoding="utf-8")
    table = page.partition("## What it finds")[2].partition("##")[0]
    documented = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.MULTILINE))
    assert set(documented) == set(KINDS)
    for kind, meaning in KINDS.items():
        assert documented[kind].startswith(meaning.split(",")[0]), kind
