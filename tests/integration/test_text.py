"""Text through every entry.

It is persisted as it is, or refused where it entered, or dead or rejected with a reason.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy.exc import DBAPIError

from streams import outbox
from streams.agents.chat_history import ChatHistoryPersist
from streams.cli import cli
from streams.database import async_engine
from streams.dev.kafka import KafkaBroker
from streams.dev.postgres import PostgresServer
from streams.errors import StreamsError
from tests.conftest import Eventually, World
from tests.fixtures.publish import CHAT, Publisher, payload

CANARY = "canary4711"  # in every text that must not be repeated by a reason or a log

EXACT = {
    "emoji": (
        "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{ROCKET} \N{WAVING WHITE FLAG}\ufe0f\u200d\N{RAINBOW}"
        " \U0010fffd"
    ),
    "right to left": (
        "\N{RIGHT-TO-LEFT OVERRIDE}שלום\N{POP DIRECTIONAL FORMATTING} مرحبا, \u200f(1)\u2067x\u2069"
    ),
    "combining": "e\u0301 is not \u00e9, Z" + "\u0351\u036b\u0343" * 50 + " \u1100\u1161\u11a8",
    "controls": "\x01\b\t\n\r\x1f\x7f\x85\u2028\u2029\ufeff\uffff",
    "what looks escaped": r"\u0000 \ud800 \" \\ %s %(x)s {x} $1 ' \x00",
    "800 kB": "ü\N{ROCKET}x" * 114_285,
    "nothing": "",
}


@dataclass(frozen=True)
class Bad:
    """A payload that no entry can have persisted.

    `value` in Python, `raw` as bytes of JSON in place of the message.
    """

    value: Any
    raw: bytes
    field: str = "message"


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


BAD = {
    "NUL": Bad(f"{CANARY}\0", b'"%b\\u0000"' % CANARY.encode()),
    "lone surrogate": Bad(f"{CANARY}\ud800", b'"%b\\ud800"' % CANARY.encode()),
    "surrogates swapped": Bad(f"{CANARY}\ude00\ud83d", b'"%b\\ude00\\ud83d"' % CANARY.encode()),
    "not UTF-8": Bad(CANARY.encode() + b"\xff", b'"%b\xff"' % CANARY.encode()),
    "64 bits and more": Bad(2**63, b"9223372036854775808", "user_id"),
    "no float": Bad(float("inf"), b"1e999999", "user_id"),
    "too deep": Bad(nested(2000), b"[" * 2000 + b"]" * 2000),
    "too deep for anybody": Bad(nested(20_000), b"[" * 20_000 + b"]" * 20_000),
}

PYTHON, FUNCTION, LINES, INSERT, RECORD = (
    "outbox.enqueue",
    "outbox_enqueue()",
    "streams enqueue",
    "INSERT",
    "record",
)
NOT_UTF8 = 'invalid byte sequence for encoding "UTF8"'

# Where each bad payload ends, by its entry: "refused" with an error, "dead" with a code, and words
# of the reason.
ENDS: dict[tuple[str, str], tuple[str, str]] = {
    (PYTHON, "NUL"): ("refused", "expected text without NUL"),
    (PYTHON, "lone surrogate"): ("refused", "expected text without lone surrogates"),
    (PYTHON, "surrogates swapped"): ("refused", "expected text without lone surrogates"),
    (PYTHON, "not UTF-8"): ("refused", "expected a value that JSON has"),
    (PYTHON, "64 bits and more"): (
        "refused",
        "'user_id' is of type int: expected int <= 9223372036854775807",
    ),
    (PYTHON, "no float"): ("refused", "'user_id' is of type float: expected a finite number"),
    (PYTHON, "too deep"): ("refused", "expected at most 254 levels of nesting"),
    (PYTHON, "too deep for anybody"): ("refused", "expected at most 254 levels of nesting"),
    (FUNCTION, "NUL"): (
        "refused",
        "payload holds a NUL character (\\u0000), which text cannot hold",
    ),
    (FUNCTION, "lone surrogate"): (
        "refused",
        "payload holds a lone surrogate, which is no character",
    ),
    (FUNCTION, "surrogates swapped"): (
        "refused",
        "payload holds a lone surrogate, which is no character",
    ),
    (FUNCTION, "not UTF-8"): ("refused", NOT_UTF8),
    (FUNCTION, "64 bits and more"): ("payload", "'user_id': expected int <= 9223372036854775807"),
    (FUNCTION, "no float"): ("refused", "payload holds a number out of range"),
    (FUNCTION, "too deep"): ("json", "the value holds values nested too deep, at character "),
    (FUNCTION, "too deep for anybody"): ("refused", "stack depth limit exceeded"),
    (LINES, "NUL"): ("refused", "'message' holds a NUL character, which text cannot hold"),
    (LINES, "lone surrogate"): (
        "refused",
        "line 1: the value holds a lone surrogate, which is no character, at character ",
    ),
    (LINES, "surrogates swapped"): (
        "refused",
        "line 1: the value holds a lone surrogate, which is no character, at character ",
    ),
    (LINES, "not UTF-8"): ("refused", "line 1: the value is not UTF-8 at byte "),
    (LINES, "64 bits and more"): ("refused", "'user_id': expected int <= 9223372036854775807"),
    (LINES, "no float"): (
        "refused",
        "line 1: the value holds a number out of range, at character ",
    ),
    (LINES, "too deep"): (
        "refused",
        "line 1: the value holds values nested too deep, at character ",
    ),
    (LINES, "too deep for anybody"): (
        "refused",
        "line 1: the value holds values nested too deep, at character ",
    ),
    (INSERT, "NUL"): ("payload", "'message' holds a NUL character, which text cannot hold"),
    (INSERT, "lone surrogate"): (
        "json",
        "the value holds a lone surrogate, which is no character, at character ",
    ),
    (INSERT, "surrogates swapped"): (
        "json",
        "the value holds a lone surrogate, which is no character, at character ",
    ),
    (INSERT, "not UTF-8"): ("refused", NOT_UTF8),
    (INSERT, "64 bits and more"): ("payload", "'user_id': expected int <= 9223372036854775807"),
    (INSERT, "no float"): ("json", "the value holds a number out of range, at character "),
    (INSERT, "too deep"): ("json", "the value holds values nested too deep, at character "),
    (INSERT, "too deep for anybody"): ("refused", "stack depth limit exceeded"),
}


@pytest.fixture(scope="module")
def world(
    postgres: PostgresServer,
    kafka: KafkaBroker,
    template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    """One relay and one worker for all of it."""
    name = f"text_{os.getpid()}"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
    environ = {
        "DATABASE_URL": postgres.url_of(name),
        "BROKER_URL": kafka.url,
        "STREAMS_RELAY__NAME": name,
        "STREAMS_WORKER__GROUP": name,
        "STREAMS_BROKER__TOPIC_PREFIX": f"{name}.",
    }
    found = World(environ, tmp_path_factory.mktemp(name))
    with found:
        found.up()
        yield found


_numbers = itertools.count()


@pytest.fixture
def key() -> str:
    """A conversation of this test's own."""
    return f"c{next(_numbers)}"


async def by_python(world: World, key: str, fields: dict[str, Any], _: bytes) -> None:
    outbox.start(world.settings)
    engine = async_engine(world.url)
    try:
        async with engine.begin() as connection:
            await outbox.enqueue(connection, ChatHistoryPersist(**fields))
    finally:
        await engine.dispose()
        outbox.close()


async def by_function(world: World, key: str, _: dict[str, Any], raw: bytes) -> None:
    world.query("SELECT outbox_enqueue(%s, %s, convert_from(%s, 'UTF8')::json)", CHAT, key, raw)


async def by_lines(world: World, key: str, _: dict[str, Any], raw: bytes) -> None:
    line = b'{"biz_type": "%b", "key": "%b", "payload": %b}\n' % (CHAT.encode(), key.encode(), raw)
    environ = {**world.environ, "STREAMS_CONFIG": ""}
    result = CliRunner(env=environ).invoke(
        cli, ["enqueue", "-"], input=io.BytesIO(line), standalone_mode=False
    )
    outbox.close()
    if result.exception is not None:
        raise result.exception


async def by_insert(world: World, key: str, _: dict[str, Any], raw: bytes) -> None:
    world.query(
        "INSERT INTO outbox (biz_type, topic, key, payload)"
        " VALUES (%s, %s, %s, convert_from(%s, 'UTF8')::json)",
        CHAT,
        world.topic,
        key,
        raw,
    )


ENTRIES = {PYTHON: by_python, FUNCTION: by_function, LINES: by_lines, INSERT: by_insert}


def fate(world: World, key: str) -> list[tuple[Any, ...]]:
    """Status, code and reason of this conversation's one message, once it is final."""
    return world.query(
        "SELECT status, error_code, error FROM outbox JOIN outbox_state ON outbox_id = id"
        " WHERE outbox.key = %s AND status IN ('consumed', 'dead')",
        key,
    )


@pytest.mark.parametrize("escaped", [False, True], ids=["plain", "escaped"])
@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("entry", ENTRIES)
async def test_text_is_persisted_byte_for_byte(
    world: World, key: str, eventually: Eventually, entry: str, name: str, escaped: bool
) -> None:
    fields = payload(0, key, message=EXACT[name])
    raw = json.dumps(fields, ensure_ascii=escaped).encode()
    if len(raw) > 900_000:
        fields["message"] = fields["message"][:120_000]
        raw = json.dumps(fields, ensure_ascii=escaped).encode()
    await ENTRIES[entry](world, key, fields, raw)
    await eventually(lambda: fate(world, key), 30, every=0.02)
    assert fate(world, key) == [("consumed", None, None)]
    [(persisted,)] = world.query(
        "SELECT convert_to(message_content, 'UTF8') FROM chat_histories WHERE chat_id = %s", key
    )
    assert persisted == fields["message"].encode()


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("entry", ENTRIES)
async def test_bytes_that_are_no_text_are_refused_or_dead_with_a_reason(
    world: World, key: str, eventually: Eventually, entry: str, name: str
) -> None:
    bad, (end, words) = BAD[name], ENDS[entry, name]
    fields = payload(0, key, message=CANARY)
    raw = json.dumps({**fields, bad.field: "@"}).encode().replace(b'"@"', bad.raw)
    if end == "refused":
        with pytest.raises((StreamsError, DBAPIError, psycopg.Error)) as caught:
            await ENTRIES[entry](world, key, {**fields, bad.field: bad.value}, raw)
        assert words in str(caught.value)
        assert world.query("SELECT count(*) FROM outbox WHERE key = %s", key) == [(0,)]
        return
    await ENTRIES[entry](world, key, fields, raw)
    await eventually(lambda: fate(world, key), 30, every=0.02)
    [(status, code, reason)] = fate(world, key)
    assert (status, code) == ("dead", end)
    assert words in reason
    assert CANARY not in reason
    assert world.query("SELECT count(*) FROM chat_histories WHERE chat_id = %s", key) == [(0,)]


async def test_records_that_nobody_enqueued_are_rejected_whatever_they_hold(
    world: World, eventually: Eventually
) -> None:
    values = [
        json.dumps(payload(0, CANARY, message=text), ensure_ascii=False).encode()
        for text in EXACT.values()
    ]
    values += [
        json.dumps(payload(0, CANARY, message="@")).encode().replace(b'"@"', bad.raw)
        for bad in BAD.values()
    ]
    with Publisher(world.settings.broker_url, world.topic, world.url) as publisher:
        for number, value in enumerate(values):
            publisher.send(10**9 + number, CANARY, value)
            publisher.send(CANARY[:6] + "\0", CANARY.encode() + b"\xff", value)
    await eventually(
        lambda: world.query("SELECT sum(count) FROM outbox_rejects") == [(2 * len(values),)], 30
    )
    assert world.query("SELECT reason, sum(count) FROM outbox_rejects GROUP BY 1 ORDER BY 1") == [
        ("header 'id' is not an outbox id: b'canary\\x00'", len(values)),
        ("no outbox row has this id", len(values)),
    ]
    assert world.query("SELECT count(*) FROM chat_histories WHERE chat_id = %s", CANARY) == [(0,)]


@pytest.mark.parametrize("name", BAD)
async def test_a_broken_record_of_a_message_is_judged_by_its_outbox_row(
    world: World, key: str, eventually: Eventually, name: str
) -> None:
    """It comes before the row is committed, and so before the relay's own record of it."""
    text = EXACT["combining"]
    value = (
        json.dumps({**payload(0, key), BAD[name].field: "@"})
        .encode()
        .replace(b'"@"', BAD[name].raw)
    )
    with psycopg.connect(world.url) as connection:
        [(outbox_id, created_ms)] = connection.execute(
            "INSERT INTO outbox (biz_type, topic, key, payload) VALUES (%s, %s, %s, %s::json)"
            " RETURNING id, (extract(epoch FROM created_at) * 1000)::bigint",
            [CHAT, world.topic, key, json.dumps(payload(0, key, message=text))],
        )
        committing = asyncio.get_running_loop().run_in_executor(
            None, connection.execute, "SELECT pg_sleep(0.5); COMMIT"
        )
        with Publisher(world.settings.broker_url, world.topic) as publisher:
            publisher.send(outbox_id, key, value, timestamp=created_ms)
        await committing
    await eventually(lambda: fate(world, key), 30, every=0.02)
    assert fate(world, key)[0][0] == "consumed"
    assert world.query("SELECT message_content FROM chat_histories WHERE chat_id = %s", key) == [
        (text,)
    ]


def test_no_log_holds_any_of_it(world: World) -> None:
    """Last in this module: everything above has passed through these processes."""
    logs = {log.name: log.read_text() for log in world.directory.glob("*.log")}
    assert len(logs) == 2
    assert [name for name, text in logs.items() if CANARY in text] == []
    assert all(process.running for process in world.processes)
