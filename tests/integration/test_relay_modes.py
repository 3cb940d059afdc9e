"""What the modes have to do with each other: the same bytes, one leader whatever the modes, and what auto chooses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.conftest import World
from tests.contract.test_relay_contract import check_order, confirmed, leads, on_topic, published
from tests.fixtures.publish import CHAT, enqueue, payload

Eventually = Callable[..., Any]

ODD = """
INSERT INTO outbox (biz_type, topic, key, payload, traceparent, resend_of, created_at) VALUES
    (%s, %s, 'k\u00e9', '{"a":  1, "b": "\\u00e9 \U0001f40d", "a": 2}', NULL, NULL, '2026-01-31 12:00:00'),
    (%s, %s, 'k\u00e9', ' [1,2]
', '00-ab-cd-01', 1, '2026-01-31 12:00:00.5'),
    (%s, %s, ' ', '"x"', '', NULL, '1970-01-02 00:00:00.001'),
    (%s, %s, 'c', 'null', NULL, NULL, '2999-12-31 23:59:59.999')
RETURNING id
"""


async def test_records_are_the_same_bytes_in_every_mode(world: World, eventually: Eventually) -> None:
    world.migrate()
    ids = [row[0] for row in world.query(ODD, *(CHAT, world.topic) * 4)]
    ids += enqueue(world.url, world.topic, [payload(n, f"c{n % 9}") for n in range(200)])
    first = world.relay(STREAMS_RELAY__MODE="cdc")
    await eventually(published(world, ids))
    log = on_topic(world)
    await first.stop(grace=8)
    world.query("DELETE FROM relay_position")
    world.relay(STREAMS_RELAY__MODE="poll")
    await eventually(lambda: len(on_topic(world)) == 2 * len(ids))
    both = {one: [record for record in on_topic(world) if record.id == one] for one in ids}
    for one in ids:
        by_log, by_poll = both[one]
        assert by_log._replace(offset=0) == by_poll._replace(offset=0)
    assert len(log) == len(ids)


async def test_relays_of_one_name_never_lead_together_whatever_their_modes(
    world: World, eventually: Eventually
) -> None:
    world.migrate()
    by_log = world.relay(STREAMS_RELAY__MODE="cdc")
    await eventually(leads(world, by_log))
    by_poll = world.relay(STREAMS_RELAY__MODE="poll")
    await eventually(lambda: "relay stands by" in (world.directory / "streams-1.log").read_text())
    ids = enqueue(world.url, world.topic, [payload(n, "c") for n in range(50)])
    await eventually(confirmed(world))
    by_log.kill()
    await eventually(leads(world, by_poll), 20)
    third = world.relay(STREAMS_RELAY__MODE="cdc")
    ids += enqueue(world.url, world.topic, [payload(n, "c") for n in range(50)])
    await eventually(published(world, ids))
    by_poll.kill()
    await eventually(leads(world, third), 20)
    ids += enqueue(world.url, world.topic, [payload(n, "c") for n in range(50)])
    await eventually(published(world, ids))
    check_order(world, ids)


async def test_auto_polls_and_says_why_for_a_role_that_may_not_replicate(
    world: World, name: str, eventually: Eventually
) -> None:
    world.migrate()
    url = world.url
    world.query(f"CREATE ROLE {name} LOGIN")
    world.query(
        f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name};"
        f"GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO {name};"
        f"GRANT INSERT, UPDATE ON relay_position TO {name}"
    )
    try:
        relay = world.relay(STREAMS_RELAY__MODE="auto", DATABASE_URL=url.replace("postgres@", f"{name}@"))
        ids = enqueue(url, world.topic, [payload(n, f"c{n % 9}") for n in range(200)])
        await eventually(published(world, ids))
        await eventually(lambda: world.query("SELECT mode, floor FROM relay_position") == [("poll", ids[-1])])
        assert f"ALTER ROLE {name} REPLICATION" in (world.directory / "streams-0.log").read_text()
        await relay.stop(grace=8)
    finally:
        world.query(f"DROP OWNED BY {name}; DROP ROLE {name}")


async def test_an_idle_outbox_holds_back_no_wal(world: World, eventually: Eventually) -> None:
    world.migrate()
    world.relay()
    world.query("CREATE TABLE other AS SELECT repeat('x', 500) FROM generate_series(1, 20000)")
    await eventually(confirmed(world))
