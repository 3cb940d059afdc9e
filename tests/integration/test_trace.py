"""`streams trace` as a person runs it, on messages in every status."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner, Result

from streams.cli import cli
from streams.errors import StreamsError, UsageError
from streams.operate import history
from tests.conftest import World
from tests.fixtures.publish import enqueue, payload

Run = Callable[..., Result]


@pytest.fixture
def run(world: World, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run one command in this world."""
    world.environ["STREAMS_RELAY__MODE"] = "poll"
    world.migrate()
    for name, value in world.environ.items():
        monkeypatch.setenv(name, value)
    return lambda *arguments: CliRunner().invoke(cli, arguments, standalone_mode=False)


@pytest.fixture
def story(world: World, run: Run) -> list[int]:
    """A conversation with a message in each status; one was replayed."""
    ids = enqueue(
        world.url, world.topic, [payload(n, "c\x1b1", message="secret-canary") for n in range(7)]
    )
    world.query("INSERT INTO relay_position (name, mode, floor) VALUES ('r', 'cdc', %s)", ids[5])
    columns = (
        'outbox_id, status, partition, "offset", applied, arrived, topic, key, attempts,'
        " error_code, error"
    )
    held = (world.topic, "c\x1b1")
    for row in (
        (ids[0], "consumed", 3, 10, 100, None, None, None, 0, None, None),
        (
            ids[1],
            "retrying",
            3,
            11,
            None,
            5,
            *held,
            2,
            "23514",
            "CheckViolation (23514): table chat_histories",
        ),
        (ids[2], "parked", 3, 12, None, 6, *held, 0, None, None),
        (
            ids[3],
            "dead",
            3,
            13,
            None,
            None,
            None,
            None,
            20,
            "payload",
            "'user_id': expected int, got str",
        ),
        (
            ids[4],
            "replaying",
            3,
            14,
            None,
            7,
            *held,
            0,
            "payload",
            "'user_id': expected int, got str",
        ),
    ):
        world.query(
            f"INSERT INTO outbox_state ({columns}) VALUES ({', '.join(['%s'] * len(row))})", *row
        )
    world.query(
        "WITH again AS (INSERT INTO outbox (biz_type, topic, key, payload, resend_of)"
        " SELECT biz_type, topic, key, payload, id FROM outbox WHERE id = %s RETURNING id)"
        " UPDATE outbox_state SET source_id = again.id, replays = 1 FROM again"
        " WHERE outbox_id = %s",
        ids[4],
        ids[4],
    )
    world.query(
        "INSERT INTO outbox_actions (who, act, what, why)"
        " VALUES ('ann', 'replay', %s, 'user fixed')",
        json.dumps({"ids": [ids[4], 10**9], "count": 2}),
    )
    return ids


def stages(story_told: dict[str, Any]) -> list[str]:
    return [event["stage"] for event in story_told["events"]]


def test_a_message_tells_its_whole_story(run: Run, story: list[int]) -> None:
    result = run("trace", str(story[4]), "--json")
    assert result.exception is None
    told = json.loads(result.output)
    assert stages(told) == ["enqueued", "relayed", "sent again", "replay", "replaying"]
    enqueued, relayed, again, act, now = told["events"]
    assert relayed["about"] == {"topic": told["topic"], "partition": 3, "offset": 14}
    assert act["about"] == {"who": "ann", "why": "user fixed"}
    assert now["about"]["source"] == again["about"]["as"] > story[6]
    assert (now["about"]["error_code"], now["about"]["replays"]) == ("payload", 1)
    age = datetime.now(UTC) - datetime.fromisoformat(enqueued["at"])
    assert timedelta(0) <= age < timedelta(minutes=5)


def test_every_status_is_told(run: Run, story: list[int], world: World) -> None:
    stories = [json.loads(run("trace", str(one), "--json").output) for one in story]
    assert [each["status"] for each in stories] == [
        "consumed", "retrying", "parked", "dead", "replaying", "published", "pending",
    ]  # fmt: skip
    last = [each["events"][-1] for each in stories]
    assert [each["stage"] for each in last] == [
        "persisted", "retrying", "parked", "dead", "replaying", "relayed", "enqueued",
    ]  # fmt: skip
    assert last[0]["about"] == {"applied": 100}
    assert last[1]["about"]["attempts"] == 2
    assert last[2]["about"] == {"behind": story[1]}
    assert last[3]["about"]["error"] == "'user_id': expected int, got str"
    assert all(each["at"] for each in last[:5])


def test_a_resend_is_its_root(run: Run, story: list[int], world: World) -> None:
    [(resend,)] = world.query("SELECT id FROM outbox WHERE resend_of IS NOT NULL")
    assert json.loads(run("trace", str(resend), "--json").output)["outbox_id"] == story[4]


def test_a_conversation_is_told_oldest_first_without_its_text(run: Run, story: list[int]) -> None:
    stories = json.loads(run("trace", "--key", "c\x1b1", "--json").output)
    assert [each["outbox_id"] for each in stories] == story
    newest = json.loads(run("trace", "--key", "c\x1b1", "--limit", "2", "--json").output)
    assert [each["outbox_id"] for each in newest] == story[5:]
    text = run("trace", "--key", "c\x1b1").output
    assert text.count("message ") == 7
    assert "canary" not in text
    assert "\x1b" not in text


def test_a_conversation_is_found_across_windows_and_since(
    run: Run, story: list[int], world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.query(
        "UPDATE outbox SET created_at = created_at - interval '2 hours' WHERE id = %s", story[0]
    )
    enqueue(world.url, world.topic, [payload(n, "other") for n in range(50)])
    monkeypatch.setattr(history, "WINDOW", 3)
    stories = json.loads(run("trace", "--key", "c\x1b1", "--json").output)
    assert [each["outbox_id"] for each in stories] == story
    recent = json.loads(run("trace", "--key", "c\x1b1", "--since", "1h", "--json").output)
    assert [each["outbox_id"] for each in recent] == story[1:]


def test_a_row_whose_time_is_no_time_is_told(run: Run, story: list[int], world: World) -> None:
    world.query("UPDATE outbox SET created_at = 'infinity' WHERE id = %s", story[0])
    assert json.loads(run("trace", str(story[0]), "--json").output)["events"][0]["at"] is None


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (["999999999"], StreamsError, "no message 999999999"),
        (["--key", "nobody"], StreamsError, "no message has the key 'nobody'"),
        ([], UsageError, "expected either OUTBOX_ID or --key"),
        (["7", "--key", "c"], UsageError, "expected either OUTBOX_ID or --key"),
    ],
)
def test_a_trace_that_cannot_be_told_is_refused_in_one_line(
    run: Run, story: list[int], arguments: list[str], kind: type[StreamsError], words: str
) -> None:
    error = run("trace", *arguments).exception
    assert isinstance(error, kind)
    assert str(error) == words


def test_a_directly_written_message_is_known(run: Run, world: World) -> None:
    world.query("INSERT INTO outbox_direct VALUES (5)")
    error = run("trace", "5").exception
    assert str(error) == "message 5 was written by its caller, while outbox.enabled was false"


@pytest.mark.parametrize("value", ["yesterday", "5", "5w", "9999999d", "2026-13-01"])
def test_since_says_what_it_takes(run: Run, value: str) -> None:
    error = run("trace", "--key", "c", "--since", value).exception
    assert "expected 30m, 12h, 7d, or a time like 2026-01-31T12:00" in str(error)
