"""`streams relay status`: who leads and stands by, how far it is.

Exit code 1 when that is bad news.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any

import psycopg
import pytest

from tests.conftest import Eventually, World
from tests.contract.test_relay_contract import confirmed, leads
from tests.fixtures.command import streams
from tests.fixtures.publish import enqueue, payload
from tests.fixtures.slots import drop_slot


async def test_it_tells_leader_standbys_floor_lag_and_slot(
    world: World, name: str, eventually: Eventually
) -> None:
    world.migrate()
    leader = world.relay(STREAMS_RELAY__MODE="cdc")
    await eventually(leads(world, leader))
    standby = world.relay(STREAMS_RELAY__MODE="auto")
    await eventually(lambda: "relay stands by" in (world.directory / "streams-1.log").read_text())
    ids = enqueue(world.url, world.topic, [payload(n, f"c{n % 5}") for n in range(500)])
    await eventually(confirmed(world))
    await eventually(lambda: world.query("SELECT floor FROM relay_position") == [(ids[-1],)])
    answer = await streams(world, "relay", "status", "--json")
    told = answer.json
    assert (answer.code, told["faults"]) == (0, [])
    assert list(told) == [
        *(
            "name",
            "mode",
            "asked",
            "wish",
            "doing",
            "reason",
            "leader",
            "silent_seconds",
            "sharing",
            "standbys",
        ),
        *("floor", "position", "lag", "rate", "slot", "strange", "retention", "retention_idle"),
        "faults",
    ]
    assert (told["name"], told["mode"], told["asked"], told["doing"]) == (
        name,
        "cdc",
        "cdc",
        "streaming",
    )
    assert told["leader"]["pid"] == leader.pid
    assert [(each["pid"], each["mode"]) for each in told["standbys"]] == [(standby.pid, "auto")]
    assert (told["floor"], told["lag"]["rows"], told["lag"]["seconds"]) == (ids[-1], 0, 0)
    assert told["lag"]["bytes"] < 1_000_000
    assert told["slot"] == {
        "wal_status": "reserved",
        "active": True,
        "held_bytes": told["slot"]["held_bytes"],
        "safe_bytes": None,
    }
    assert told["rate"] > 0
    shown = await streams(world, "relay", "status")
    assert shown.code == 0
    for words in (
        "streaming",
        f":{leader.pid} (cdc)",
        f":{standby.pid} (auto)",
        "reserved, read, holds back",
    ):
        assert words in shown.out
    both = (await streams(world, "status", "--json")).json["relays"]
    assert [(each["pid"], each["leader"]) for each in both] == [
        (leader.pid, True),
        (standby.pid, False),
    ]


async def test_nobody_leading_is_bad_news(world: World) -> None:
    never = await streams(world, "relay", "status")
    assert (never.code, "nobody leads relay" in never.error) == (1, True)
    world.migrate()
    migrated = await streams(world, "relay", "status", "--json")
    assert (migrated.code, migrated.json["leader"], migrated.json["slot"]["active"]) == (
        1,
        None,
        False,
    )
    assert "nobody leads relay" in (await streams(world, "status")).out


@pytest.mark.long
async def test_a_slot_that_cannot_be_made_is_bad_news_with_what_mends_it(
    world: World, name: str, eventually: Eventually
) -> None:
    world.migrate()
    relay = world.relay(STREAMS_RELAY__MODE="cdc")
    await eventually(leads(world, relay))
    # Nothing is made without a publication.
    world.query("DROP PUBLICATION outbox_pub")
    world.query("UPDATE relay_position SET wish = NULL")
    await relay.stop(grace=8)
    drop_slot(world.url, name)
    second = world.relay(STREAMS_RELAY__MODE="auto")
    await eventually(leads(world, second))
    answer = await streams(world, "relay", "status")
    assert answer.code == 1
    assert (
        "is healing: publication outbox_pub does not exist: run `streams migrate`" in answer.error
    )
    world.migrate()
    await eventually(lambda: world.query("SELECT doing FROM relay_position") == [("streaming",)])
    assert (await streams(world, "relay", "status")).code == 0


async def test_relays_that_differ_say_so(world: World, eventually: Eventually) -> None:
    world.migrate()
    await eventually(leads(world, world.relay(STREAMS_RELAY__MODE="poll")))
    world.relay(STREAMS_RELAY__MODE="cdc")
    log = world.directory / "streams-1.log"
    await eventually(lambda: "relays of one name differ" in log.read_text())
    assert "mode=cdc leader_mode=poll" in log.read_text()


@pytest.mark.long
async def test_a_slot_that_another_system_reads_is_named(
    world: World, name: str, eventually: Eventually
) -> None:
    world.migrate()
    # It answers nothing: without this the server would take it for dead, and give its slot away.
    patient: Any = {"application_name": "another system", "options": "-c wal_sender_timeout=0"}
    with closing(psycopg.connect(world.url, replication="database", **patient)) as other:
        start = (
            f"START_REPLICATION SLOT {name} LOGICAL 0/0"
            " (proto_version '1', publication_names 'outbox_pub')"
        )
        other.pgconn.send_query(start.encode())
        other.pgconn.flush()
        active = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"
        await eventually(lambda: world.query(active, name) == [(True,)])
        world.relay(STREAMS_RELAY__MODE="cdc")
        log = world.directory / "streams-0.log"

        def said() -> bool:
            return "slot taken" in log.read_text() and "(another system)" in log.read_text()

        await eventually(said)
        # The leader's position is saved a moment after its line in the log.
        reason = (
            "SELECT doing, reason LIKE 'replication slot%%' FROM relay_position WHERE name = %s"
        )
        await eventually(lambda: world.query(reason, name) == [("waiting", True)])
        assert (await streams(world, "relay", "status")).code == 1
    await eventually(lambda: world.query("SELECT doing FROM relay_position") == [("streaming",)])
