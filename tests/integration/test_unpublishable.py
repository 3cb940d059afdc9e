"""Rows that are hard or impossible to publish: each costs one message.

Nothing goes round in circles, and the rest goes on.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from streams.broker import kafka
from streams.registry import Registry, configured
from streams.relay.sink.dead_rows import DeadRows
from streams.relay.sink.limits import RecordLimits
from streams.relay.sink.publisher import Publisher
from streams.relay.source.rows import Row, Rows
from tests.conftest import Eventually, World
from tests.contract.test_relay_contract import alter_topic, check_order, on_topic, published
from tests.fixtures.command import streams
from tests.fixtures.notes import Notes
from tests.fixtures.publish import CHAT, enqueue, payload

MODES = pytest.mark.parametrize("mode", ["cdc", pytest.param("poll", marks=pytest.mark.long)])


def row(world: World, outbox_id: int, resend_of: int | None = None, **changes: Any) -> Row:
    headers: list[tuple[str, str | bytes | None]] = [
        ("id", b"%d" % outbox_id),
        ("biz_type", CHAT.encode()),
        ("traceparent", None),
        ("resend_of", None if resend_of is None else b"%d" % resend_of),
    ]
    return Row(world.topic, b"c", b"{}", 1_700_000_000_000, headers)._replace(**changes)


async def test_a_replay_that_no_record_can_carry_is_dead_again(
    world: World, tmp_path: Path, eventually: Eventually
) -> None:
    """It would be `replaying` for ever, out of every operator's reach.

    Its conversation would wait behind it.
    """
    world.migrate()
    notes = Notes(world, tmp_path)
    kafka.prepare_topics(world.settings, [notes.topic])
    alter_topic(world, "max.message.bytes", "20000", topic=notes.topic)
    world.relay()
    world.worker()
    [large] = notes.enqueue("a", "x" * 30_000)
    await eventually(lambda: notes.all([large], "dead"))
    assert (await streams(world, "dead", "replay", str(large))).code == 0
    behind = notes.enqueue("a", "a1")
    dead = "SELECT status, error_code, replays, topic, key FROM outbox_state WHERE outbox_id = %s"
    await eventually(lambda: world.query(dead, large) == [("dead", "unpublishable", 1, None, None)])
    await eventually(lambda: notes.all(behind, "consumed"), 60)
    assert (world.directory / "streams-0.log").read_text().count("message dead") == 2


FATES = [
    ("replaying", 7, 7, False, "dead", False),
    ("replaying", 7, 7, True, "dead", True),
    ("replaying", 6, 7, False, "replaying", True),
    # A resend only wakes its worker: what waits is worked from its outbox row, and needs no record.
    ("retrying", None, 7, False, "retrying", True),
    ("parked", None, 7, False, "parked", True),
    ("parked", None, 5, False, "parked", True),
    ("retrying", None, 5, False, "retrying", True),
]


@pytest.mark.parametrize(("status", "source", "buried", "holds", "then", "open_then"), FATES)
async def test_only_who_waits_for_that_row_is_dead(
    world: World,
    status: str,
    source: int | None,
    buried: int,
    holds: bool,
    then: str,
    open_then: bool,
) -> None:
    world.migrate()
    world.query(
        "INSERT INTO outbox_state (outbox_id, status, source_id, topic, key, arrived,"
        " next_retry_at) VALUES (5, %s, %s, 't', 'c', 1, CASE WHEN %s = 'retrying' THEN now()"
        " END)",
        *(status, source, status),
    )
    agents = configured(world.settings).agents
    agent = replace(agents[CHAT], on_dead="hold" if holds else "continue")
    await DeadRows(world.settings, Registry({CHAT: agent})).mark_dead(
        row(world, buried, None if buried == 5 else 5), "too large"
    )
    [found] = world.query(
        "SELECT status, topic IS NOT NULL, key IS NOT NULL FROM outbox_state WHERE outbox_id = 5"
    )
    assert found == (then, open_then, open_then)


async def test_a_dead_message_that_cannot_be_written_down_does_not_hold_the_line(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.migrate()
    world.query("ALTER TABLE outbox_state ADD CONSTRAINT nobody CHECK (status <> 'dead')")
    with caplog.at_level("WARNING", logger="streams.relay"):
        await asyncio.wait_for(
            DeadRows(world.settings, configured(world.settings)).mark_dead(
                row(world, 5), "too large"
            ),
            30,
        )
    assert world.query("SELECT count(*) FROM outbox_state") == [(0,)]
    [last] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert last.message == "dead message not written down, the sweep sends it again"
    assert (last.__dict__["outbox_id"], last.__dict__["sqlstate"]) == (5, "23514")


@MODES
async def test_headers_that_are_too_large_cost_one_message(
    world: World, eventually: Eventually, mode: str
) -> None:
    world.environ["STREAMS_RELAY__MODE"] = mode
    world.migrate()
    ids = enqueue(world.url, world.topic, [payload(0, "c")])
    [(long,)] = world.query(
        "INSERT INTO outbox (biz_type, topic, key, payload, traceparent)"
        " VALUES (%s, %s, 'c', '{}', repeat('x', 1100000)) RETURNING id",
        *(CHAT, world.topic),
    )
    ids += enqueue(world.url, world.topic, [payload(1, "c")])
    relay = world.relay()
    await eventually(published(world, ids))
    check_order(world, ids)
    assert world.query("SELECT outbox_id, status, error_code FROM outbox_state") == [
        (long, "dead", "unpublishable")
    ]
    assert relay.running


@MODES
async def test_a_backlog_of_rows_as_large_as_they_may_be(
    world: World, eventually: Eventually, mode: str
) -> None:
    """140 MB at once are more than librdkafka holds."""
    world.environ |= {"STREAMS_RELAY__MODE": mode, "STREAMS_OUTBOX__MAX_BYTES": "1500000"}
    world.migrate()
    world.query(
        "INSERT INTO outbox (biz_type, topic, key, payload)"
        " SELECT %s, %s, 'c', json_build_object('x', repeat('x', 1400000))"
        " FROM generate_series(1, 100)",
        *(CHAT, world.topic),
    )
    relay = world.relay()
    floor = "SELECT coalesce(max(floor), 0) FROM relay_position"
    await eventually(lambda: world.query(floor) == [(100,)], 60)
    assert [record.id for record in on_topic(world)] == list(range(1, 101))
    assert relay.running


async def test_a_producer_without_room_is_waited_for(world: World) -> None:
    class Narrow(Publisher):
        def _configuration(self) -> dict[str, Any]:
            return super()._configuration() | {"queue.buffering.max.messages": 10}

    async def mark_dead(row: Row, reason: str) -> None:
        raise AssertionError(reason)

    kafka.prepare_topics(world.settings, [world.topic])
    admission = RecordLimits(world.settings, {})
    await admission.learn([world.topic])
    async with Narrow(world.settings, admission, mark_dead) as publisher:
        await publisher.publish(Rows([row(world, n) for n in range(1, 501)], 500, 1000))
        assert await publisher.flush(20)
        assert publisher.confirmed == 500
    assert [record.id for record in on_topic(world)] == list(range(1, 501))
