"""`streams status` says in one line each what is missing, and ends with 1 then.

With 0 when all is well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

from streams.cli import cli
from tests.conftest import Eventually, World

Status = Callable[..., Result]


@pytest.fixture
def status(world: World, monkeypatch: pytest.MonkeyPatch) -> Status:
    """Run `streams status` in this world, whose relay polls."""
    # A worker that is killed is missed soon.
    world.environ |= {"STREAMS_RELAY__MODE": "poll", "STREAMS_WORKER__SESSION_TIMEOUT": "3"}
    world.migrate()
    for name, value in world.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(world.directory)
    return lambda *arguments: CliRunner().invoke(
        cli, ["status", *arguments], catch_exceptions=False
    )


async def test_status_says_who_is_missing_until_all_is_well(
    world: World, status: Status, eventually: Eventually
) -> None:
    group = world.settings.worker.group
    nobody = status()
    assert nobody.exit_code == 1
    assert f"nobody leads relay {world.settings.relay.name}: start `streams relay`" in nobody.output
    assert f"consumed topic {world.topic} does not exist" in nobody.output
    assert (
        f"no worker is in consumer group {group}, nobody reads {world.topic}: start a worker"
        in nobody.output
    )

    relay, worker = world.relay(), world.worker()
    well = await eventually(lambda: result if (result := status()).exit_code == 0 else None, 60)
    assert "nobody" not in well.output
    assert "no worker" not in well.output

    worker.kill()
    await eventually(lambda: f"no worker is in consumer group {group}" in status().output, 30)
    relay.kill()
    gone = await eventually(
        lambda: (
            result if "the last leader is silent" in (result := status("--json")).output else None
        ),
        30,
    )
    assert gone.exit_code == 1
    world.worker()
    await eventually(lambda: "no worker" not in status().output, 60)


def test_a_broker_that_does_not_answer_is_missing_too(
    world: World, status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKER_URL", "127.0.0.1:1")
    gone = status()
    assert gone.exit_code == 1
    assert "Kafka at 127.0.0.1:1 cannot be reached" in gone.output


def test_a_run_that_waits_is_named_and_what_is_only_to_be_watched_is_no_failure(
    world: World, status: Status
) -> None:
    world.query(
        # With a sign of life for as long as the test takes.
        "INSERT INTO outbox_processes (id, kind, name, host, pid, version, waits_for, waits_code,"
        " waits_since, heartbeat) VALUES (gen_random_uuid(), 'worker', 'g', 'h', 7, '1', 'every"
        " chat fails with 42703', '42703', now() - interval '1 min', now() + interval '1 hour')"
    )
    waits = (
        r"a run of worker h:7 waits for ([6-9]\d|\d{3}) s: every chat fails with 42703 \(42703\)"
    )
    told = status()
    assert told.exit_code == 1
    assert re.search(waits, told.output)
    doctor = CliRunner().invoke(cli, ["doctor"], catch_exceptions=False)
    assert doctor.exit_code == 1
    assert re.search(
        f"bad: {waits}\n  do: the handler and the database's schema do not fit", doctor.output
    )
    assert "docs/monitoring/runbook.md#run-waits" in doctor.output
    same = json.loads(CliRunner().invoke(cli, ["doctor", "--json"]).output)
    assert {fault["code"] for fault in same} == {
        fault["code"] for fault in json.loads(status("--json").output)["faults"]
    }
