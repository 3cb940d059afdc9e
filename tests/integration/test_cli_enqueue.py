"""`streams enqueue` and `streams topic tail` as a person runs them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from streams import outbox
from streams.cli import cli
from streams.errors import StreamsError
from tests.conftest import World
from tests.fixtures.publish import CHAT, enqueue, payload


@pytest.fixture
def run(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run one command in this world."""
    world.environ["STREAMS_RELAY__MODE"] = "poll"
    world.migrate()
    for name, value in world.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(outbox, "_outbox", None)

    def invoke(*arguments: str, lines: bytes = b"") -> Result:
        return CliRunner().invoke(cli, arguments, input=io.BytesIO(lines), standalone_mode=False)

    return invoke


def line(number: int, chat: str = "c1", **changes: Any) -> bytes:
    return (
        json.dumps({"biz_type": CHAT, "payload": payload(number, chat)} | changes).encode() + b"\n"
    )


def test_a_file_is_enqueued_in_its_order(
    world: World, run: Callable[..., Result], tmp_path: Path
) -> None:
    file = tmp_path / "messages.jsonl"
    file.write_bytes(b"\n".join(line(n, f"c{n % 3}", key=f"c{n % 3}") for n in range(2500)))
    result = run("enqueue", str(file))
    assert (result.exception, result.output) == (None, "2500 messages enqueued\n")
    rows = world.query("SELECT key, payload->>'message', topic FROM outbox ORDER BY id")
    assert rows == [(f"c{n % 3}", f"m {n}", world.topic) for n in range(2500)]


BROKEN = [
    (b"nope\n", "not JSON"),
    (b"[1]\n", 'expected an object with "biz_type"'),
    (line(1, extra=1), "nothing else"),
    (line(1, biz_type="nope"), "unknown biz_type 'nope': expected one of chat_history_persist"),
    (line(1, biz_type=7), "unknown biz_type 7"),
    (
        line(1, key="other"),
        (
            "chat_history_persist: key (5 bytes) is not what field 'conversation_id' of the payload"
            " says (2 bytes)"
        ),
    ),
    (line(1, payload=payload(1, "c1", user_id="x")), "user_id"),
    (line(1, payload=payload(1, "c1", message="a\0b")), "NUL"),
    (line(1).replace(b"m 1", b"\\ud800"), "surrogate"),
    (line(1, payload=payload(1, "c1", message="x" * 900_001)), "at most 900000"),
    (line(1, payload=None), "payload"),
    (b"\xff\xfe\n", "not UTF-8"),
]


@pytest.mark.parametrize(("broken", "reason"), BROKEN, ids=[case[1] for case in BROKEN])
def test_it_stops_at_the_first_line_that_cannot_be_taken(
    world: World, run: Callable[..., Result], broken: bytes, reason: str
) -> None:
    result = run("enqueue", "-", lines=line(0) + b"\n" + line(1) + broken + line(2))
    assert isinstance(result.exception, StreamsError)
    text = str(result.exception)
    assert result.exception.exit_code == 2
    assert text.startswith("line 4: ")
    assert reason in text
    assert text.endswith("; the 2 messages before it are committed")
    assert world.query("SELECT count(*) FROM outbox") == [(2,)]


def test_check_names_every_broken_line_and_enqueues_nothing(
    world: World, run: Callable[..., Result]
) -> None:
    result = run("enqueue", "--check", "-", lines=line(0) + b"nope\n" + line(1) + line(2, key="x"))
    assert isinstance(result.exception, StreamsError)
    assert (result.exception.exit_code, str(result.exception)) == (
        1,
        "2 of 4 lines cannot be taken",
    )
    assert [text.split(":")[0] for text in result.output.splitlines()] == ["line 2", "line 4"]
    assert run("enqueue", "--check", "-", lines=line(0)).output == "1 lines can be taken\n"
    assert world.query("SELECT count(*) FROM outbox") == [(0,)]


async def test_tail_shows_records_without_their_text(
    world: World, run: Callable[..., Result]
) -> None:
    world.environ["STREAMS_RELAY__MODE"] = "cdc"
    world.migrate()
    [outbox_id] = enqueue(world.url, world.topic, [payload(7, "c\x1b[31m")])
    world.relay()
    result = run("topic", "tail", "--from-beginning", "-n", "1") if await appeared(world) else None
    assert result is not None
    assert f"id={outbox_id} biz_type={CHAT} key=c\\x1b[31m time=" in result.output
    assert "m 7" not in result.output
    assert (
        '"m 7"'
        in run("topic", "tail", world.topic, "--from-beginning", "-n", "1", "--values").output
    )


def test_tail_of_a_topic_that_does_not_exist(run: Callable[..., Result]) -> None:
    result = run("topic", "tail", "not-there", "-n", "1")
    assert str(result.exception) == "topic 'not-there' does not exist"


async def appeared(world: World) -> bool:
    import asyncio

    from tests.fixtures.records import records

    async with asyncio.timeout(90):
        while not records(world.settings.broker_url, world.topic):
            await asyncio.sleep(0.2)
    return True
