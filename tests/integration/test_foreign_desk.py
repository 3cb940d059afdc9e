"""Operators' acts on other systems' messages, on real PostgreSQL.

They are named `source:id`, beside ours with the same ids.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from streams import operate
from streams.cli import cli
from streams.errors import StreamsError, UsageError
from tests.conftest import World
from tests.fixtures.publish import CHAT, enqueue, payload

Run = Callable[..., Result]


@pytest.fixture
def run(world: World, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run one command in this world.

    One dead message of ours, six of the system `seed`, one of `other`.
    """
    world.environ["STREAMS_RELAY__MODE"] = "poll"
    world.migrate()
    for name, value in world.environ.items():
        monkeypatch.setenv(name, value)
    [mine] = enqueue(world.url, world.topic, [payload(0, "c0")])
    assert mine == 1
    world.query(
        "INSERT INTO outbox_state (outbox_id, status, error_code, error)"
        " VALUES (1, 'dead', 'json', 'broken 1')"
    )
    for outbox_id in range(1, 7):
        bury(world, "seed", outbox_id, f"c{outbox_id % 2}")
    bury(world, "other", 1, "c0")
    return lambda *arguments, lines=None: CliRunner().invoke(
        cli, arguments, input=lines, standalone_mode=False
    )


def bury(world: World, source: str, outbox_id: int, key: str) -> None:
    world.query(
        'INSERT INTO outbox_foreign (source, outbox_id, status, partition, "offset", attempts,'
        " error_code, error, biz_type, topic, key, created_at, payload)"
        " VALUES (%s, %s, 'dead', 0, %s, 3, 'json', 'broken 2', %s, 'theirs', %s, now(), %s)",
        source,
        outbox_id,
        100 - outbox_id,
        CHAT,
        key,
        json.dumps(payload(outbox_id, key, message="secret-canary")),
    )


def due(world: World) -> list[str]:
    rows = world.query(
        "SELECT source || ':' || outbox_id FROM outbox_foreign WHERE open ORDER BY arrived"
    )
    return [row[0] for row in rows]


def test_dead_messages_are_listed_with_whose_they_are(run: Run) -> None:
    def listed(*arguments: str) -> list[Any]:
        return [
            one["outbox_id"] for one in json.loads(run("dead", "list", "--json", *arguments).output)
        ]

    assert listed() == [1, "other:1", *[f"seed:{n}" for n in range(1, 7)]]
    assert listed("--source", "seed", "--key", "c0") == ["seed:2", "seed:4", "seed:6"]
    assert listed("--source", "") == [1]
    [group] = json.loads(run("dead", "list", "--group", "--json").output)
    assert (group["messages"], group["conversations"], group["example"]) == (8, 3, 1)
    text = run("dead", "list").output
    assert "seed:3" in text
    assert "canary" not in text
    assert "canary" not in run("dead", "show", "seed:3").output
    assert "secret-canary" in run("dead", "show", "seed:3", "--payload").output
    assert json.loads(run("status", "--json").output)["messages"]["dead"] == 8


def test_an_id_means_whose_it_says(run: Run, world: World) -> None:
    assert (
        run("dead", "replay", "1", "seed:1", "--yes", "--why", "both").output
        == "replayed 2 messages\n"
    )
    assert due(world) == ["seed:1"]
    assert world.query("SELECT resend_of FROM outbox WHERE resend_of IS NOT NULL") == [(1,)]
    assert world.query("SELECT act, outbox_id, what->'ids', why FROM outbox_actions") == [
        ("replay", None, [1, "seed:1"], "both")
    ]
    for name in ("1", "seed:1"):
        stages = [
            event["stage"] for event in json.loads(run("trace", name, "--json").output)["events"]
        ]
        assert stages.count("replay") == 1
    assert "replay" not in run("trace", "other:1").output
    assert world.query(
        "SELECT status, attempts, replays, next_retry_at <= now() FROM outbox_foreign WHERE open"
    ) == [("retrying", 0, 1, True)]


def test_each_conversation_is_replayed_in_its_order(run: Run, world: World) -> None:
    assert run("dead", "replay", "--source", "seed", "--yes").output == "replayed 6 messages\n"
    # The order of the topic, which is not that of the ids here.
    assert due(world) == ["seed:5", "seed:3", "seed:1", "seed:6", "seed:4", "seed:2"]
    assert run("dead", "replay", "--all", "--yes").output == "replayed 2 messages\n"


def test_replaying_in_circles_is_refused_without_force(run: Run, world: World) -> None:
    world.query(
        "UPDATE outbox_foreign SET replays = %s WHERE source = 'seed' AND outbox_id < 3",
        operate.MOST_REPLAYS,
    )
    assert str(run("dead", "replay", "seed:1").exception).startswith(
        "message seed:1 was replayed 3 times already"
    )
    assert run("dead", "replay", "--source", "seed", "--yes").output == (
        "replayed 4 messages; left alone: 2 replayed too often already (--force)\n"
    )
    assert run("dead", "replay", "seed:1", "--force").output == "replayed 1 message\n"


def test_discarded_is_final_and_forgets_the_text(run: Run, world: World) -> None:
    # It was edited before: that text goes too.
    world.query("UPDATE outbox_foreign SET replaced = 'text' WHERE outbox_id = 2")
    assert run("dead", "discard", "seed:2", "--who", "bob").output == "discarded 1 message\n"
    assert world.query(
        "SELECT status, open, payload FROM outbox_foreign WHERE source = 'seed' AND outbox_id = 2"
    ) == [("discarded", False, None)]
    assert world.query("SELECT replaced FROM outbox_foreign WHERE outbox_id = 2") == [(None,)]
    error = run("dead", "replay", "seed:1", "seed:2", "--yes").exception
    assert isinstance(error, operate.NotDead)
    assert str(error) == "message seed:2 is discarded, expected dead: nothing was done"
    assert str(run("dead", "replay", "seed:77").exception).startswith(
        "message seed:77 is not known"
    )
    assert world.query("SELECT count(*) FROM outbox_foreign WHERE status = 'dead'") == [(6,)]


@pytest.mark.parametrize(
    ("edited", "words"),
    [
        ("nope", "not JSON"),
        (json.dumps(payload(1, "c1", user_id="x")), "'user_id': expected int"),
        (json.dumps(payload(1, "elsewhere")), "'conversation_id' is 'elsewhere', expected 'c1'"),
    ],
)
def test_an_edited_payload_is_checked(run: Run, world: World, edited: str, words: str) -> None:
    error = run("dead", "replay", "seed:1", "--payload", "-", lines=edited).exception
    assert isinstance(error, UsageError)
    assert words in str(error)
    assert due(world) == []


def test_an_edit_says_the_conversation_where_the_payload_did_not(run: Run, world: World) -> None:
    world.query(
        "UPDATE outbox_foreign SET payload = '{', key = 'a guess' WHERE source = 'seed'"
        " AND outbox_id = 1"
    )
    edited = json.dumps(payload(1, "c1"))
    assert run("dead", "replay", "seed:1", "--payload", "-", lines=edited).exception is None
    [(key, text, replaced)] = world.query(
        "SELECT key, payload, replaced FROM outbox_foreign WHERE open"
    )
    assert (key, json.loads(text)["message"], replaced) == ("c1", "m 1", "{")


def test_a_held_conversation_is_listed_and_released(run: Run, world: World) -> None:
    world.query(
        "UPDATE outbox_foreign SET open = true, arrived = 7 WHERE source = 'seed' AND outbox_id = 3"
    )
    world.query("UPDATE outbox_state SET topic = 'ours', key = 'c1', arrived = 8")
    held = json.loads(run("conversations", "list", "--held", "--json").output)
    assert {(one["topic"], one["key"], one["head"]) for one in held} == {
        ("theirs", "c1", "seed:3"),
        ("ours", "c1", 1),
    }
    assert (
        run("conversations", "release", "c1", "--topic", "theirs").output
        == "released: held by seed:3\n"
    )
    assert run("conversations", "release", "c1").output == "released: held by 1\n"
    assert world.query("SELECT count(*) FROM outbox_foreign WHERE open") == [(0,)]
    assert run("dead", "list", "--json", "--source", "seed").output.count('"outbox_id"') == 6


def test_a_conversation_is_told_by_its_source(run: Run, world: World) -> None:
    stories = json.loads(
        run("trace", "--key", "c0", "--source", "seed", "--limit", "2", "--json").output
    )
    assert [each["outbox_id"] for each in stories] == ["seed:4", "seed:6"]
    assert [event["stage"] for event in stories[0]["events"]] == ["produced", "relayed", "dead"]
    assert json.loads(
        run("trace", "--key", "c0", "--source", "seed", "--since", "1h", "--json").output
    )
    assert isinstance(run("trace", "seed:99").exception, StreamsError)
    assert isinstance(run("trace", "7", "--source", "seed").exception, UsageError)
    assert "no message has the key" in str(
        run("trace", "--key", "c0", "--source", "nobody").exception
    )


@pytest.mark.parametrize("text", ["seed:", ":1", "seed:x", "seed:0", "x", str(2**63)])
def test_text_that_is_no_id_is_refused_in_one_line(run: Run, text: str) -> None:
    for arguments in (("dead", "show"), ("dead", "replay"), ("trace",)):
        error = run(*arguments, text).exception
        assert f"{text!r}: expected an id from 1 to {2**63 - 1}, or SOURCE:ID" in str(error)
