"""Each fault: what brings it up, and what nearly does."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from streams.operate.faults import CODES, database_away, faults_of, worker_unready
from streams.operate.relay_status import Lag, Member, RelayStatus, SlotHealth
from streams.operate.snapshot import (
    Broker,
    Cause,
    Count,
    Deleted,
    Limits,
    Partition,
    Pin,
    Process,
    Proof,
    Rate,
    Room,
    Snapshot,
    TopicLimit,
    Totals,
    Trend,
    UnknownBizType,
)

RUNBOOK = Path(__file__).parents[2] / "docs" / "monitoring" / "runbook.md"
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
GB = 1_000_000_000


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


RELAY = RelayStatus(
    name="outbox",
    mode="cdc",
    asked="cdc",
    wish=None,
    doing="streaming",
    reason=None,
    leader=Member(1, "host", "cdc"),
    silent_seconds=1.0,
    sharing=(),
    standbys=(),
    floor=10,
    position="0/1",
    lag=Lag(0, 0, 0.0),
    rate=0.0,
    slot=SlotHealth("reserved", True, 100, None),
    strange=False,
)
WORKER = Process(
    id="w",
    kind="worker",
    name="g",
    host="h",
    pid=1,
    version="1",
    state="alive",
    silent=1.0,
    started=ago(1000),
    heartbeat=NOW,
    partitions={"t": (0,)},
)
PART = Partition(
    group="g",
    topic="t",
    partition=0,
    committed=5,
    end=9,
    log_start=0,
    moved=ago(5),
    at=NOW,
    worked=ago(5),
    owner="w",
)
PROOF = Proof(
    id=1,
    at=ago(60),
    complete=True,
    messages=5,
    wrong=0,
    missing=0,
    doubled=0,
    until_id=5,
    until=ago(60),
    under_way=Count(0),
)
CAUSE = Cause(
    fingerprint="f",
    biz_type="chat",
    error_code="23503",
    messages=2,
    conversations=1,
    held=0,
    first=ago(7200),
    last=ago(10),
    example=1,
)
TOTALS = Totals(
    pending=Count(0), published=Count(0), retrying=0, parked=0, replaying=0, held=1, dead=2
)
WELL = Snapshot(
    at=NOW,
    database="db",
    limits=Limits(relay="outbox", wal_warn=GB, topics=("t",)),
    totals=TOTALS,
    relays=(RELAY,),
    relays_at=NOW,
    processes=(WORKER,),
    partitions=(PART,),
    causes=(CAUSE,),
    proof=PROOF,
    first_message_at=ago(3600),
    room=Room(1000, 90_000.0),
    retention=(TopicLimit("t", 100.0),),
    trends={"lag:t": Trend(2000, 2100, 600), "wal_held:outbox": Trend(0, 100, 600)},
    failing=(Rate("chat", consumed=1.0, dead=5.0),),
    held_since=ago(600),
    recent_dead=19,
    usual_dead=1.0,
)


def relay(**changes: Any) -> dict[str, Any]:
    return {"relays": (replace(RELAY, **changes),)}


def slot(**changes: Any) -> dict[str, Any]:
    assert RELAY.slot is not None
    return relay(slot=replace(RELAY.slot, **changes))


def worker(**changes: Any) -> dict[str, Any]:
    return {"processes": (replace(WORKER, **changes),)}


def part(**changes: Any) -> dict[str, Any]:
    return {"partitions": (replace(PART, **changes),)}


LIMITED = replace(WELL.limits, wal_limit=10 * GB)

# Of each code: what brings it up, and what nearly does.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "database.read_only": ({"read_only": True}, {"replica": True}),
    "database.went_back": ({"gone_back": "it went back"}, {"gone_back": None}),
    "replica.behind": (
        {"replica": True, "behind": 10.1},
        {"replica": True, "behind": 10.0},
    ),
    "broker.away": ({"broker": Broker(error="Kafka at x cannot be reached")}, {"broker": Broker()}),
    "workers.incomplete": (
        {"broker": Broker(faults=("topic t does not exist: make it",))},
        {"broker": Broker()},
    ),
    "relay.strange": (relay(strange=True), relay(strange=False)),
    "relay.nobody_leads": (
        relay(leader=None, silent_seconds=12.0),
        relay(standbys=(Member(2, "h", "cdc"),)),
    ),
    "relay.waits": (relay(doing="waiting", reason="no topic"), relay(doing="polling")),
    "relay.heals": (relay(doing="healing"), relay(doing="connector")),
    "slot.lost": (slot(wal_status="lost"), slot(wal_status="extended")),
    "slot.missing": (relay(slot=None), relay(slot=None, mode="poll")),
    "wal.held": (slot(held_bytes=GB + 1), slot(held_bytes=GB)),
    "wal.limit_near": (
        {"limits": LIMITED, "trends": {"wal_held:outbox": Trend(0, GB, 600)}},
        {"limits": LIMITED, "trends": {"wal_held:outbox": Trend(GB, 1000, 600)}},
    ),
    "floor.pinned": (
        {"pins": (Pin(7, None, "psql", "idle in transaction", ago(90)),)},
        {"pins": ()},
    ),
    "outbox.partitions_end": ({"room": Room(10, 3599.0)}, {"room": Room(10, None)}),
    "outbox.partitions_ending": ({"room": Room(10, 3600.0)}, {"room": Room(10, 86_400.0)}),
    "outbox.retention_waits": (
        relay(retention=("retention of messages 0 to 9 waits: pid 7 (pg_dump, active)",)),
        relay(retention=()),
    ),
    "sweep.refused": (
        {"unsent": ("message 7 of topic t: PostgreSQL refuses it: CheckViolation",)},
        {"unsent": ()},
    ),
    "workers.none": ({"processes": ()}, worker(state="silent")),
    "worker.silent": (worker(state="silent", silent=15.0), worker(state="ended")),
    "process.crashes": ({"crashed": (("worker on h", 3),)}, {"crashed": ()}),
    "run.waits": (
        worker(waits_for="UndefinedColumn", waits_code="42703", waits_since=ago(16)),
        worker(waits_for="UndefinedColumn", waits_code="42703", waits_since=ago(14)),
    ),
    "partition.unowned": (part(owner=None, moved=ago(31)), part(owner=None, moved=ago(30))),
    "partition.stuck": (part(moved=ago(61)), part(moved=ago(61), committed=9)),
    "topic.unserved": ({"unserved": (("seed", 3),)}, {"unserved": ()}),
    "lag.grows": (
        {"trends": {"lag:t": Trend(400, 1000, 600)}},
        {"trends": {"lag:t": Trend(400, 999, 600)}},
    ),
    "retention.passed": (part(log_start=6), part(log_start=5)),
    "retention.near": (part(worked=ago(51)), part(worked=ago(49))),
    "records.deleted": ({"deleted": (Deleted("t", 0, 2, 4, 3, ago(9)),)}, {"deleted": ()}),
    "versions.differ": (
        {"processes": (WORKER, replace(WORKER, id="v", version="2"))},
        {"processes": (WORKER, replace(WORKER, id="v", version="2", state="gone"))},
    ),
    "biz_type.unknown": ({"unknown": (UnknownBizType("x", 1, ago(5), NOW),)}, {"unknown": ()}),
    "biz_type.fails": (
        {"failing": (Rate("chat", dead=20 / 600),)},
        {"failing": (Rate("chat", dead=19 / 600),)},
    ),
    "dead.new_cause": (
        {"causes": (replace(CAUSE, first=ago(899)),)},
        {"causes": (replace(CAUSE, first=ago(900)),)},
    ),
    "dead.spike": ({"recent_dead": 20}, {"recent_dead": 20, "usual_dead": 2.1}),
    "conversations.held": ({"held_since": ago(3601)}, {"held_since": ago(3600)}),
    "attempts.ending": ({"ending": 1}, {"ending": 0}),
    "rejects.arrive": ({"rejects": 1}, {"rejects": 0}),
    "audit.red": ({"proof": replace(PROOF, wrong=1)}, {"proof": replace(PROOF, missing=0)}),
    "audit.overdue": ({"proof": replace(PROOF, at=ago(86_401))}, {"proof": None}),
}


def test_no_room_at_all_is_a_fault_whatever_the_rate() -> None:
    """Each enqueue that fails draws an id: no row says at which rate they come."""
    full = replace(WELL, room=Room(0, None))
    assert "outbox.partitions_end" in codes(full)


def codes(snapshot: Snapshot) -> set[str]:
    return {fault.code for fault in faults_of(snapshot)}


@pytest.mark.parametrize(
    ("idle", "hours", "fires"),
    [
        (None, 7, True),
        (None, 5, False),
        (7 * 3600.0, 8, True),
        (7 * 3600.0, 5, False),
        (60.0, 8, False),
    ],
)
def test_a_leader_that_does_no_retention_for_hours_is_a_fault_where_it_is_set(
    idle: float | None, hours: int, fires: bool
) -> None:
    assert RELAY.leader is not None
    pid = RELAY.leader.pid
    leader = replace(
        WORKER, id="r", kind="relay", host=RELAY.leader.host, pid=pid, started=ago(hours * 3600)
    )
    # In containers all have the same pid.
    standby = replace(leader, id="s", host="elsewhere", started=ago(60))
    idles = replace(WELL, **relay(retention_idle=idle), processes=(WORKER, leader, standby))
    assert codes(idles) == set()
    told = faults_of(replace(idles, limits=replace(WELL.limits, retains=True)))
    assert [fault.code for fault in told] == ["outbox.retention_waits"] * fires
    assert all(fault.title.endswith("has not looked for what is old for 7 hours") for fault in told)


def test_a_leader_that_may_write_no_figures_is_told_by_its_retention_alone() -> None:
    retains = replace(WELL.limits, retains=True)
    for idle, fires in ((7 * 3600.0, True), (5 * 3600.0, False), (None, False)):
        idles = replace(WELL, **relay(retention_idle=idle), limits=retains, processes=(WORKER,))
        assert codes(idles) == ({"outbox.retention_waits"} if fires else set())


def test_nothing_is_wrong_when_all_is_well() -> None:
    assert faults_of(WELL) == []


@pytest.mark.parametrize("code", CASES)
def test_a_fault_fires_when_it_should_and_not_a_moment_before(code: str) -> None:
    fires, nearly = CASES[code]
    assert code in codes(replace(WELL, **fires))
    assert code not in codes(replace(WELL, **nearly))


def test_every_fault_has_a_case() -> None:
    assert {*CASES, "database.away", "worker.unready"} == set(CODES)
    assert worker_unready("127.0.0.1:6066", running=True).severity == "bad"
    assert database_away("no route").code == "database.away"


def test_every_fault_has_its_section_in_the_runbook_and_every_section_a_fault() -> None:
    headings = re.findall(r"^## (.+)$", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE)
    anchors = [heading.replace(" ", "-") for heading in headings]
    assert sorted(anchors) == sorted(code.replace(".", "-").replace("_", "-") for code in CODES)


def test_faults_that_need_somebody_now_come_first() -> None:
    faults = faults_of(replace(WELL, rejects=1, read_only=True, ending=3))
    assert [fault.severity for fault in faults] == ["bad", "watch", "watch"]


def test_a_fault_says_what_to_do_and_where_to_read_on() -> None:
    [fault] = faults_of(
        replace(WELL, **worker(waits_for="it fails", waits_code="42703", waits_since=ago(60)))
    )
    assert fault.line.startswith(
        "a run of worker h:1 waits for 60 s: it fails (42703): the handler and"
    )
    assert fault.anchor == "run-waits"
    assert fault.since == ago(60)
