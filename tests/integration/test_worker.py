"""A real worker on records that a relay sends, and on records that nobody should have sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import orjson
import psycopg
import pytest

from streams.broker import consumers
from streams.broker import kafka as topics
from streams.registry import configured
from streams.settings import load
from streams.worker import preflight
from tests.conftest import Eventually, World
from tests.fixtures.publish import CHAT, Odd, Publisher, enqueue, payload, publish, publish_batch


@pytest.fixture
def ready(world: World) -> World:
    """The world with its topic and a migrated database, no slot."""
    world.environ["STREAMS_RELAY__MODE"] = "poll"
    world.migrate()
    topics.prepare_topics(world.settings, [world.topic])
    return world


def settled(world: World, ids: list[int]) -> Callable[[], bool]:
    """Whether each of these ids has a state."""
    return lambda: (
        world.query("SELECT count(*) FROM outbox_state WHERE outbox_id = ANY(%s)", ids)
        == [(len(ids),)]
    )


def states(world: World) -> dict[int, str]:
    return dict(world.query("SELECT outbox_id, status FROM outbox_state"))


async def test_messages_are_persisted_once_in_order_per_conversation(
    ready: World, eventually: Eventually
) -> None:
    messages = [payload(n, f"c{n % 7}", user_id=n % 7) for n in range(700)]
    ids = enqueue(ready.url, ready.topic, messages)
    publish(ready.settings.broker_url, ready.topic, ready.url, ids + ids[:100])
    ready.worker()
    await eventually(settled(ready, ids), 60)
    rows = ready.query("SELECT chat_id, outbox_id, message_content FROM chat_histories ORDER BY id")
    assert sorted(row[1] for row in rows) == ids
    for key in {row[0] for row in rows}:
        numbers = [int(row[2].split()[1]) for row in rows if row[0] == key]
        assert numbers == sorted(numbers)
    assert ready.query("SELECT chat_id, message_count FROM agent_chats ORDER BY 1") == [
        (f"c{n}", 100) for n in range(7)
    ]
    assert ready.query(
        "SELECT count(*) FROM chat_histories JOIN outbox ON outbox.id = outbox_id"
        " WHERE chat_histories.created_at = outbox.created_at"
    ) == [(700,)]
    # In its group it says for which database it works.
    [(identity,)] = ready.query("SELECT outbox_identity()")
    assert consumers.others(ready.settings, "1/2/3", [ready.topic]) == {ready.topic: identity}


async def test_broken_values_are_judged_by_their_outbox_row(
    ready: World, eventually: Eventually
) -> None:
    ids = enqueue(ready.url, ready.topic, [payload(n, "c1") for n in range(6)])
    bad = enqueue(
        ready.url,
        ready.topic,
        [{"conversation_id": "c2", "user_id": "x"}, payload(1, "c2", message=None)],
    )
    [unknown] = enqueue(ready.url, ready.topic, [payload(1, "c3")], biz_type="who_knows")
    with Publisher(ready.settings.broker_url, ready.topic, ready.url) as publisher:
        for outbox_id, value in zip(
            ids, (b"{", b"\xff\xfe", None, b"[1]", b"", b"\x00"), strict=True
        ):
            publisher.send(outbox_id, "c1", value)
        for outbox_id in bad:
            publisher.send(outbox_id, "c2", b"{}")
        publisher.send(unknown, "c3", b"{}", biz_type="who_knows")
    ready.worker(STREAMS_WORKER__UNKNOWN_DAYS="0.00001")
    fates = {**dict.fromkeys(ids, "consumed"), **dict.fromkeys([*bad, unknown], "dead")}
    await eventually(lambda: states(ready) == fates, 60)
    assert ready.query("SELECT message_content FROM chat_histories ORDER BY id") == [
        (f"m {n}",) for n in range(6)
    ]
    reasons = [
        row[0]
        for row in ready.query(
            "SELECT error FROM outbox_state WHERE status = 'dead' ORDER BY outbox_id"
        )
    ]
    assert reasons[0] == "'user_id': expected int, got str"
    assert reasons[1] == "'message': expected str, got null"
    assert reasons[2] == "unknown biz_type 'who_knows': expected one of chat_history_persist"


async def test_a_record_without_an_outbox_row_is_rejected_and_the_rest_goes_on(
    ready: World, eventually: Eventually
) -> None:
    ids = enqueue(ready.url, ready.topic, [payload(n, "c1") for n in range(3)])
    topics.prepare_topics(ready.settings, [f"{ready.topic}-retry"])
    with Publisher(ready.settings.broker_url, ready.topic, ready.url) as publisher:
        for forged in (
            None,
            "",
            "x",
            "-1",
            "0",
            "1.5",
            "99999999999999999999",
            "٣",
            10**9,
            2**63 - 1,
        ):
            publisher.send(forged, "c1", b"{}")
        publisher.send(5 * 10**8, "c1", b"not json")
        publisher.send(ids[0], None, b"{}")
        publisher.send(ids[1], b"\xff", b"{}")
        publisher.send(ids[2], b"a\0b", b"{}")
    with Publisher(ready.settings.broker_url, f"{ready.topic}-retry") as publisher:
        for key in (None, b"", b"\xff", b"\0", b"nobody"):
            publisher.send(None, key, None)
    worker = ready.worker()
    # Those whose key is not their row's too: what is sent again counts.
    await eventually(lambda: ready.query("SELECT sum(count) FROM outbox_rejects") == [(14,)], 60)
    assert states(ready) == {}
    publish(ready.settings.broker_url, ready.topic, ready.url, ids)
    await eventually(settled(ready, ids), 30)
    assert set(states(ready).values()) == {"consumed"}
    assert worker.running


async def test_header_names_that_are_not_utf8_stop_nobody(
    ready: World, eventually: Eventually
) -> None:
    """Another client may write them.

    What a fetch had taken of other partitions before it met one comes again.
    """
    broker, topic = ready.settings.broker_url, ready.topic
    ids = enqueue(ready.url, topic, [payload(n, "c0") for n in range(1500)])
    others = enqueue(ready.url, topic, [payload(n, f"c{n}") for n in range(1, 400)])
    headers = [[("id", str(one).encode()), ("biz_type", CHAT.encode())] for one in ids]
    for number in (700, 701, 1499):
        headers[number][:0] = [(Odd("x"), Odd.NAME), (Odd("y"), b"")]
    records = [("c0", orjson.dumps(payload(n, "c0")), headers[n]) for n in range(1500)]
    await publish_batch(broker, topic, ready.url, records[:1000])
    publish(broker, topic, ready.url, others[:200])
    await publish_batch(
        broker,
        topic,
        ready.url,
        [*records[1000:], ("\N{GREEK SMALL LETTER MU}", Odd.NAME, headers[1499][:2])],
    )
    worker = ready.worker()
    publish(broker, topic, ready.url, others[200:])
    rejects = 'SELECT reason, partition, "offset" FROM outbox_rejects'
    await eventually(lambda: settled(ready, [*ids, *others])() and ready.query(rejects), 60)
    assert set(states(ready).values()) == {"consumed"}
    rows = ready.query(
        "SELECT message_content FROM chat_histories WHERE chat_id = 'c0' ORDER BY id"
    )
    assert rows == [(f"m {n}",) for n in range(1500)]
    [(reason, partition, offset)] = ready.query(rejects)
    assert (reason, partition) == ("header 'id' is not an outbox id: missing", 0)
    log = worker.log.read_text()
    # None of it by the second net, which waits for ten seconds.
    assert "are read again" not in log
    said = [line for line in log.splitlines() if "a header name that is not UTF-8" in line]
    assert len(said) == 4
    assert f"topic={topic} partition=0 offset={offset}" in said[-1]
    assert worker.running


async def test_a_second_biz_type_is_one_file_in_the_users_own_package(
    ready: World, eventually: Eventually, tmp_path: Path
) -> None:
    package = tmp_path / "myapp" / "agents"
    package.mkdir(parents=True)
    (tmp_path / "myapp" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "likes.py").write_text(
        "from dataclasses import dataclass\n"
        "from sqlalchemy import text\n"
        "from sqlalchemy.ext.asyncio import AsyncConnection\n"
        "from streams import Batch, agent, event\n\n"
        "@event('like_added', topic='likes', key='post')\n"
        "@dataclass(frozen=True, slots=True, kw_only=True)\n"
        "class LikeAdded:\n    post: str\n    by: int\n\n"
        "@agent(LikeAdded)\n"
        "async def save(messages: Batch[LikeAdded], db: AsyncConnection) -> None:\n"
        "    await db.execute(text('INSERT INTO likes SELECT outbox_id, post, by"
        " FROM json_to_recordset(:m)'\n"
        "        ' AS m (outbox_id bigint, post text, by bigint)'), {'m': messages.json()})\n"
    )
    (tmp_path / "faust.yml").write_text(
        "agents: [streams.agents, myapp.agents]\ntopics: {likes: {partitions: 3}}\n"
    )
    ready.query("CREATE TABLE likes (outbox_id bigint PRIMARY KEY, post text, by bigint)")
    ready.environ["STREAMS_CONFIG"] = str(tmp_path / "faust.yml")
    ready.environ["PYTHONPATH"] = str(tmp_path)
    likes = f"{ready.settings.broker.topic_prefix}likes"
    ready.worker()
    await eventually(lambda: ready.query("SELECT count(*) FROM outbox_biz_types") == [(2,)], 60)
    ids = [
        ready.query("SELECT outbox_enqueue('like_added', 'p1', '{\"post\":\"p1\",\"by\":7}')")[0][0]
        for _ in range(3)
    ]
    chats = enqueue(ready.url, ready.topic, [payload(1, "c1")])
    publish(ready.settings.broker_url, likes, ready.url, ids)
    publish(ready.settings.broker_url, ready.topic, ready.url, chats)
    await eventually(settled(ready, [*ids, *chats]), 60)
    # A process without that agent may start beside this worker: somebody works what waits.
    enqueue(ready.url, likes, [{"post": "p2", "conversation_id": "p2"}], "like_added")
    ours = load(environ={**ready.environ, "STREAMS_CONFIG": "", "STREAMS_RELAY__MODE": "poll"})
    preflight.refuse_unserved(ours, configured(ours))
    assert ready.query("SELECT * FROM likes ORDER BY 1") == [(one, "p1", 7) for one in ids]
    assert ready.query("SELECT outbox_id FROM chat_histories") == [(chats[0],)]


async def test_a_record_that_overtakes_the_visibility_of_its_row_waits_for_it(
    ready: World, eventually: Eventually
) -> None:
    """A walsender may send a commit before other sessions see it.

    Here its session is busy until then.
    """
    ready.worker()
    first = enqueue(ready.url, ready.topic, [payload(0, "c1")])
    publish(ready.settings.broker_url, ready.topic, ready.url, first)
    await eventually(settled(ready, first), 60)
    with psycopg.connect(ready.url) as connection:
        [(early, created_ms)] = connection.execute(
            "INSERT INTO outbox (biz_type, topic, key, payload) VALUES (%s, %s, 'c1', %s)"
            " RETURNING id, (extract(epoch FROM created_at) * 1000)::bigint",
            (CHAT, ready.topic, orjson.dumps(payload(1, "c1")).decode()),
        )
        committing = asyncio.get_running_loop().run_in_executor(
            None, connection.execute, "SELECT pg_sleep(3); COMMIT"
        )
        with Publisher(ready.settings.broker_url, ready.topic) as publisher:
            publisher.send(early, "c1", orjson.dumps(payload(1, "c1")), timestamp=created_ms)
        late = enqueue(ready.url, ready.topic, [payload(2, "c1")])
        publish(ready.settings.broker_url, ready.topic, ready.url, late)
        await committing
    await eventually(settled(ready, [early, *late]), 30)
    assert ready.query("SELECT message_content FROM chat_histories ORDER BY id") == [
        (f"m {n}",) for n in range(3)
    ]
    assert ready.query("SELECT count(*) FROM outbox_rejects") == [(0,)]


READ_ONLY = """
import os, sys

def refuse(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if isinstance(mode, str):
            wanted = any(mark in mode for mark in "wax+")
        else:
            wanted = flags & (os.O_WRONLY | os.O_RDWR)
        if not wanted or not isinstance(path, str | bytes):
            return
        if os.fsdecode(path).startswith(("/dev/", "/proc/")):
            return
    elif event not in ("os.mkdir", "os.rename", "os.link", "os.symlink"):
        return
    raise OSError(30, "Read-only file system", str(arguments[0]))

sys.addaudithook(refuse)
"""


async def test_a_file_system_that_is_read_only_is_enough(world: World, tmp_path: Path) -> None:
    """As a hardened container has it, without /tmp.

    The worker ended with FileNotFoundError from gettempdir.
    """
    (tmp_path / "sitecustomize.py").write_text(READ_ONLY)
    world.environ |= {"PYTHONPATH": str(tmp_path), "STREAMS_RELAY__MODE": "poll"}
    world.up()
    ids = enqueue(world.url, world.topic, [payload(n, "c1") for n in range(3)])
    assert (await world.until_persisted(ids)).statuses == ["consumed"] * 3
    assert all(process.running for process in world.processes)
    for command in (["status"], ["trace", str(ids[0])], ["dead", "list"], ["relay", "status"]):
        process = world.start("streams", *command)
        await process.finish(60)
        assert "Read-only" not in process.log.read_text()
        assert process.returncode in (0, 1), process.log.read_text()
