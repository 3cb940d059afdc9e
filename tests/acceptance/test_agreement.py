"""What is at rest is the same wherever it is shown, to the message, before and after kill -9."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import NullPool

from streams.cli import cli
from streams.database import sync_engine
from streams.operate.faults import faults_of
from streams.operate.look import look
from streams.operate.metrics import cluster_metrics
from streams.operate.snapshot import Limits, Snapshot
from tests.conftest import Eventually, World
from tests.fixtures.publish import enqueue, payload

ALL, CAUSES = 12_345, (8, 5, 4)
WRONG: tuple[dict[str, Any], ...] = ({"user_id": "x"}, {"role": 7}, {"message": None})
STATUSES = ("pending", "published", "retrying", "parked", "replaying", "dead")


def snapshot(world: World) -> Snapshot:
    with sync_engine(world.url, poolclass=NullPool).connect() as connection:
        return look(connection, Limits(relay=world.settings.relay.name, topics=(world.topic,)))


def shown(numbers: Snapshot) -> dict[str, int]:
    """As functions of pages and API give it."""
    totals = numbers.totals
    return {
        "pending": totals.pending.number,
        "published": totals.published.number,
        **{status: getattr(totals, status) for status in STATUSES[2:]},
        **{f"cause {cause.fingerprint}": cause.messages for cause in numbers.causes},
    }


def told(numbers: Snapshot) -> dict[str, int]:
    """As Prometheus reads it."""
    values: dict[str, int] = {}
    for family in text_string_to_metric_families(
        cluster_metrics(numbers, faults_of(numbers)).decode()
    ):
        for sample in family.samples:
            if sample.name == "outbox_messages" and sample.labels["status"] in STATUSES:
                values[sample.labels["status"]] = int(sample.value)
            if sample.name == "outbox_dead_messages":
                values[f"cause {sample.labels['fingerprint']}"] = int(sample.value)
    return values


def said() -> dict[str, int]:
    """As `streams status` and `streams dead list` print it."""
    messages = json.loads(CliRunner().invoke(cli, ["status", "--json"]).output)["messages"]
    groups = json.loads(CliRunner().invoke(cli, ["dead", "list", "--group", "--json"]).output)
    return {status: messages[status] for status in STATUSES} | {
        f"cause {group['fingerprint']}": group["messages"] for group in groups
    }


def stored(world: World) -> dict[str, int]:
    """As plain SQL counts it."""
    counts = dict.fromkeys(STATUSES, 0)
    counts |= dict(
        world.query(
            "SELECT status, count(*) FROM outbox_messages WHERE status <> 'consumed'"
            " GROUP BY status"
        )
    )
    rows = world.query("SELECT fingerprint, count(*) FROM outbox_dead GROUP BY fingerprint")
    return counts | {f"cause {fingerprint}": count for fingerprint, count in rows}


def flowed(world: World) -> dict[str, int]:
    [row] = world.query(
        "SELECT sum(enqueued), sum(relayed), sum(consumed), sum(dead) FROM outbox_stats"
        " WHERE width = 10"
    )
    return dict(zip(("enqueued", "relayed", "consumed", "dead"), map(int, row), strict=True))


@pytest.mark.timeout(180)
async def test_everything_that_shows_numbers_shows_the_same(
    world: World, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.environ["STREAMS_RELAY__MODE"] = "poll"
    for name, value in world.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(world.directory)
    world.up(workers=2)
    wrong = [
        payload(number, f"w{kind}-{number}") | WRONG[kind]
        for kind, count in enumerate(CAUSES)
        for number in range(count)
    ]
    # One waits for a worker that knows its biz_type, another one behind it.
    enqueue(world.url, world.topic, [payload(n, "nobody's") for n in range(2)], biz_type="nobody")
    enqueue(world.url, world.topic, wrong)
    good = ALL - sum(CAUSES) - 2
    enqueue(world.url, world.topic, [payload(number, f"c{number % 500}") for number in range(good)])

    expected = {
        "pending": 0,
        "published": 0,
        "retrying": 1,
        "parked": 1,
        "replaying": 0,
        "dead": sum(CAUSES),
    }

    def at_rest() -> Snapshot | None:
        seen = snapshot(world)
        return seen if {status: shown(seen)[status] for status in STATUSES} == expected else None

    seen = await eventually(at_rest, 90)
    agreed = shown(seen)
    assert sorted(count for name, count in agreed.items() if name.startswith("cause")) == sorted(
        CAUSES
    )
    assert agreed == told(seen) == said() == stored(world)
    whole = {"enqueued": ALL, "relayed": ALL, "consumed": good, "dead": sum(CAUSES)}
    await eventually(lambda: flowed(world) == whole, 30)

    for process in world.processes:
        process.kill()
    enqueue(world.url, world.topic, [payload(number, "late") for number in range(5)])
    expected["pending"] = 5
    seen = snapshot(world)
    assert shown(seen) == agreed | {"pending": 5} == told(seen) == said() == stored(world)

    world.relay()
    world.worker()
    expected["pending"] = 0
    seen = await eventually(at_rest, 60)
    assert shown(seen) == agreed == told(seen) == said() == stored(world)
    after = flowed(world)
    assert all(after[name] <= whole[name] + 5 for name in whole)
