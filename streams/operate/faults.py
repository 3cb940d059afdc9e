"""What is wrong with a deployment: a pure function of one snapshot, the same for whoever shows it.

`streams status`, `streams doctor`, `/metrics/cluster`, the pages and the API all show this list;
what only Kafka or a process itself can tell (`BY_COMMANDS`) is known to commands, which ask.
`bad` needs somebody now and makes `streams status` exit with 1; `watch` will need somebody. Each
fault says what to do, and has an anchor in the runbook (docs/monitoring/runbook.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from streams.operate.relay_status import RelayStatus
from streams.operate.snapshot import Count, Limits, Partition, Process, Rate, Snapshot, Totals

Severity = Literal["bad", "watch"]

BEHIND_SECONDS = 10.0
STUCK_SECONDS = 60.0
UNOWNED_SECONDS = 30.0
WAIT_SECONDS = 15.0
NEW_CAUSE_SECONDS = 900.0
HELD_SECONDS = 3600.0
LEAST_ROOM_SECONDS = 3600.0
ROOM_SECONDS = 86_400.0
LEAST_DEAD = 20
SPIKE = 10.0
LEAST_FAILED = 20
LEAST_LAG = 1000
LEAST_TREND_SECONDS = 240.0
WAL_HOURS = 24.0
IDLE_SECONDS = 21_600.0
_NONE = Totals(
    pending=Count(0), published=Count(0), retrying=0, parked=0, replaying=0, held=0, dead=0
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is wrong: `code` names its kind.

    `subject` says which relay, topic or biz_type it is about, if any. `title` says it in words,
    `do` what to do; `since` is known where somebody wrote it down.
    """

    code: str
    severity: Severity
    title: str
    do: str
    subject: str = ""
    since: datetime | None = None

    @property
    def anchor(self) -> str:
        """Where the runbook tells more: docs/monitoring/runbook.md#ANCHOR."""
        return self.code.replace(".", "-").replace("_", "-")

    @property
    def line(self) -> str:
        """As a command prints it."""
        return f"{self.title}: {self.do}"


CODES: dict[str, Severity] = {
    "database.away": "bad",
    "database.read_only": "bad",
    "database.went_back": "bad",
    "replica.behind": "watch",
    "broker.away": "bad",
    "relay.strange": "bad",
    "relay.nobody_leads": "bad",
    "relay.waits": "bad",
    "relay.heals": "bad",
    "slot.lost": "bad",
    "slot.missing": "bad",
    "wal.held": "watch",
    "wal.limit_near": "watch",
    "floor.pinned": "bad",
    "outbox.partitions_end": "bad",
    "outbox.partitions_ending": "watch",
    "outbox.retention_waits": "watch",
    "sweep.refused": "bad",
    "workers.none": "bad",
    "workers.incomplete": "bad",
    "worker.silent": "watch",
    "worker.unready": "bad",
    "process.crashes": "bad",
    "run.waits": "bad",
    "partition.unowned": "bad",
    "partition.stuck": "bad",
    "topic.unserved": "bad",
    "lag.grows": "watch",
    "retention.passed": "bad",
    "retention.near": "watch",
    "records.deleted": "bad",
    "versions.differ": "watch",
    "biz_type.unknown": "bad",
    "biz_type.fails": "bad",
    "dead.new_cause": "watch",
    "dead.spike": "bad",
    "conversations.held": "watch",
    "attempts.ending": "watch",
    "rejects.arrive": "watch",
    "audit.red": "bad",
    "audit.overdue": "watch",
}
"""Every kind of fault there is, with its severity."""

BY_COMMANDS = frozenset(
    {
        "database.away",
        "database.went_back",
        "broker.away",
        "workers.incomplete",
        "worker.unready",
    }
)
"""Those that no snapshot of the tables tells: pages and metrics would never show them."""


def faults_of(snapshot: Snapshot) -> list[Fault]:
    """What is wrong, `bad` first; empty when nothing is."""
    faults = [fault for rule in _RULES for fault in rule(snapshot)]
    return sorted(faults, key=lambda fault: fault.severity != "bad")


def database_away(reason: str) -> Fault:
    """What is wrong when there can be no snapshot."""
    return _fault(
        "database.away",
        f"the database does not answer: {reason}",
        "look at PostgreSQL and at DATABASE_URL; relay and workers wait for it and lose nothing",
    )


def went_back(reason: str) -> Fault:
    """The database is an older copy of itself."""
    return _fault(
        "database.went_back",
        reason,
        "nothing is published until you decide: see `streams relay adopt`",
    )


def replica_behind(seconds: float) -> Fault:
    """What was looked at is a replica that shows what was so many seconds ago."""
    return _fault(
        "replica.behind",
        f"the replica that this is read from is {_span(seconds)} behind its primary",
        "what happened since is not shown: see whether it follows (pg_stat_wal_receiver), or set"
        " web.database_url to another one",
    )


def worker_unready(web: str, *, running: bool) -> Fault:
    """A worker that this folder's supervisor started, and that does not work."""
    do = "its page /health/ready says why" if running else "it is started again; its log says why"
    title = f"worker {web} is not ready" + ("" if running else ", it does not run")
    return _fault("worker.unready", title, do, subject=web)


def relay_faults(relay: RelayStatus, limits: Limits | None = None) -> list[Fault]:
    """What is wrong with one relay alone."""
    alone = Snapshot(at=datetime.now(UTC), limits=limits or Limits(), totals=_NONE)
    return [*_relay(relay), *_slot(relay, alone), *_retention_of(relay)]


def _fault(
    code: str, title: str, do: str, *, subject: str = "", since: datetime | None = None
) -> Fault:
    return Fault(code=code, severity=CODES[code], title=title, do=do, subject=subject, since=since)


def _database(snapshot: Snapshot) -> Iterator[Fault]:
    if snapshot.read_only:
        yield _fault(
            "database.read_only",
            f"database {snapshot.database} takes no writes",
            "its sessions begin read-only: ALTER DATABASE or ALTER SYSTEM RESET"
            " default_transaction_read_only, or point DATABASE_URL at the primary",
        )
    if snapshot.gone_back:
        yield went_back(snapshot.gone_back)
    if snapshot.behind > BEHIND_SECONDS:
        yield replica_behind(snapshot.behind)


def _broker(snapshot: Snapshot) -> Iterator[Fault]:
    broker = snapshot.broker
    if broker is None:
        return
    if broker.error is not None:
        yield _fault(
            "broker.away",
            broker.error,
            "look at Kafka and at BROKER_URL; nothing is lost, the outbox keeps every message",
        )
    for line in broker.faults:
        title, _, do = line.partition(": ")
        yield _fault("workers.incomplete", title, do or "start a worker")


def _relays(snapshot: Snapshot) -> Iterator[Fault]:
    names = {relay.name for relay in snapshot.relays}
    wanted = snapshot.limits.relay
    if wanted not in names and snapshot.relays_at is not None:
        yield _fault(
            "relay.nobody_leads",
            f"nobody leads relay {wanted}",
            "start `streams relay`",
            subject=wanted,
        )
    for relay in snapshot.relays:
        yield from _relay(relay)
        yield from _slot(relay, snapshot)


def _relay(relay: RelayStatus) -> Iterator[Fault]:
    if relay.strange:
        yield _fault(
            "relay.strange",
            f"this is not the database that relay {relay.name} published from",
            "see `streams relay adopt`",
            subject=relay.name,
        )
    if relay.leader is None:
        seconds = relay.silent_seconds
        silent = "" if seconds is None else f", the last leader is silent for {seconds:.0f} s"
        yield _fault(
            "relay.nobody_leads",
            f"nobody leads relay {relay.name}{silent}",
            "start `streams relay`",
            subject=relay.name,
        )
    elif relay.doing in ("healing", "waiting"):
        yield _fault(
            "relay.heals" if relay.doing == "healing" else "relay.waits",
            f"relay {relay.name} is {relay.doing}: {relay.reason or 'it has just begun'}",
            "it goes on by itself once that is over; `streams relay status` tells how far it is",
            subject=relay.name,
        )


def _slot(relay: RelayStatus, snapshot: Snapshot) -> Iterator[Fault]:
    slot, limits = relay.slot, snapshot.limits
    if slot is None:
        if relay.mode in ("cdc", "debezium"):
            yield _fault(
                "slot.missing",
                f"replication slot {relay.name} does not exist",
                "a relay in mode cdc makes it anew",
                subject=relay.name,
            )
        return
    if slot.wal_status == "lost":
        yield _fault(
            "slot.lost",
            f"replication slot {relay.name} has lost its WAL",
            "a relay in mode cdc makes it anew",
            subject=relay.name,
        )
        return
    if slot.held_bytes > limits.wal_warn:
        yield _fault(
            "wal.held",
            f"replication slot {relay.name} holds back {_size(slot.held_bytes)} of log",
            "see why the relay does not read on (`streams relay status`); set relay.wal_limit if"
            " the disk is in danger",
            subject=relay.name,
        )
    room = _wal_room(relay, snapshot)
    slope = trend.slope if (trend := snapshot.trends.get(f"wal_held:{relay.name}")) else 0.0
    if room is not None and slope > 0 and room / slope < WAL_HOURS * 3600:
        yield _fault(
            "wal.limit_near",
            f"replication slot {relay.name} reaches its limit in {_span(room / slope)}",
            "end what holds it back, or give it room (max_slot_wal_keep_size, relay.wal_limit):"
            " past it the relay has to begin anew",
            subject=relay.name,
        )


def _wal_room(relay: RelayStatus, snapshot: Snapshot) -> int | None:
    """How many bytes more may be held back before somebody ends it; None: no limit."""
    if relay.slot is None:
        return None
    limit = snapshot.limits.wal_limit
    ours = None if limit is None else max(0, limit - relay.slot.held_bytes)
    rooms = [room for room in (ours, relay.slot.safe_bytes) if room is not None]
    return min(rooms, default=None)


def _pins(snapshot: Snapshot) -> Iterator[Fault]:
    for pin in snapshot.pins:
        if pin.gid is not None:
            who = f"prepared transaction {pin.gid!r}"
            do = f"COMMIT PREPARED or ROLLBACK PREPARED {pin.gid!r}"
        else:
            who = f"the transaction of pid {pin.pid}"
            about = ", ".join(filter(None, (pin.application, pin.state)))
            who, do = f"{who} ({about})" if about else who, "end it"
        yield _fault(
            "floor.pinned",
            f"{who} is open since {_time(pin.since)} and holds the relay's floor: what it wrote"
            " last cannot be told from what is lost",
            do,
            since=pin.since,
        )


def _room(snapshot: Snapshot) -> Iterator[Fault]:
    room = snapshot.room
    if room.ids <= 0:  # each try draws an id, so that no row says at which rate
        yield _fault(
            "outbox.partitions_end",
            "the outbox has no partition for the next row: enqueueing fails",
            "start a relay, it makes them",
        )
        return
    if room.seconds is None or room.seconds >= ROOM_SECONDS:
        return
    near = room.seconds < LEAST_ROOM_SECONDS
    yield _fault(
        "outbox.partitions_end" if near else "outbox.partitions_ending",
        f"the outbox has partitions for {room.ids:,} more rows, {_span(room.seconds)} at the"
        " present rate, then enqueueing fails",
        "start a relay, it makes them",
    )


def _retention(snapshot: Snapshot) -> Iterator[Fault]:
    for relay in snapshot.relays:
        yield from _retention_of(relay)
        idle = _idle(relay, snapshot)
        if snapshot.limits.retains and idle > IDLE_SECONDS:
            yield _fault(
                "outbox.retention_waits",
                f"relay {relay.name} has not looked for what is old for {_span(idle)}",
                "its log says why (`housekeeping interrupted`); `streams retention` does it now",
                subject=relay.name,
            )


def _idle(relay: RelayStatus, snapshot: Snapshot) -> float:
    """For how many seconds its leader, which runs that long, has not done retention.

    One that may not write how long it runs is told by what it wrote last of retention.
    """
    led = [
        (snapshot.at - process.started).total_seconds()
        for process in snapshot.processes
        if relay.leader is not None
        and process.kind == "relay"
        and process.pid == relay.leader.pid
        and process.host.startswith(relay.leader.host)  # of which PostgreSQL keeps the beginning
    ]
    if relay.leader is None or not led:
        return 0.0 if relay.leader is None else relay.retention_idle or 0.0
    return min(math.inf if relay.retention_idle is None else relay.retention_idle, *led)


def _retention_of(relay: RelayStatus) -> Iterator[Fault]:
    if relay.retention:
        yield _fault(
            "outbox.retention_waits",
            f"{relay.retention[0]}{_more(relay.retention)}",
            "`streams retention --dry-run` says what holds each range up",
            subject=relay.name,
        )


def _sweep(snapshot: Snapshot) -> Iterator[Fault]:
    if snapshot.unsent:
        yield _fault(
            "sweep.refused",
            f"what Kafka lost is not sent again: {snapshot.unsent[0]}{_more(snapshot.unsent)}",
            "mend what refuses it (a constraint, a trigger, a right); the relay tries again within"
            " ten minutes",
        )


def _more(lines: Sequence[str]) -> str:
    return f", and {len(lines) - 1} more" if len(lines) > 1 else ""


def _workers(snapshot: Snapshot) -> Iterator[Fault]:
    known = snapshot.broker is not None and (snapshot.broker.error or snapshot.broker.faults)
    if not snapshot.workers and not known and snapshot.broker is None:
        yield _fault("workers.none", "no worker runs, nobody reads the topics", "start a worker")
    for process in snapshot.processes:
        if process.state == "silent":
            yield _fault(
                "worker.silent",
                f"{process.kind} {process.place} is silent for {process.silent:.0f} s",
                "see whether it still runs; what it worked on goes to another one by itself",
                subject=process.id,
                since=process.heartbeat,
            )
    for where, count in snapshot.crashed:
        yield _fault(
            "process.crashes",
            f"{where} ended {count} times in ten minutes without saying goodbye",
            "read its log: memory, a handler that ends the process, a probe that kills it",
            subject=where,
        )
    versions = snapshot.versions
    if len(versions) > 1:
        yield _fault(
            "versions.differ",
            f"processes run different versions: {', '.join(versions)}",
            "finish the rollout, or end the old ones",
        )


def _runs(snapshot: Snapshot) -> Iterator[Fault]:
    for process in snapshot.processes:
        if process.waits_for is None or process.state != "alive" or process.waits_since is None:
            continue
        seconds = (snapshot.at - process.waits_since).total_seconds()
        if seconds < WAIT_SECONDS:
            continue
        code = f" ({process.waits_code})" if process.waits_code else ""
        yield _fault(
            "run.waits",
            f"a run of {process.kind} {process.place} waits for {_span(seconds)}:"
            f" {process.waits_for}{code}",
            _cure(process),
            subject=process.id,
            since=process.waits_since,
        )


def _cure(process: Process) -> str:
    code = process.waits_code or ""
    if code.startswith("42") and code != "42501":
        return "the handler and the database's schema do not fit: migrate, or deploy the fix"
    if code == "42501":
        return "grant the worker's role what it lacks (docs/security.md)"
    if code.startswith("53"):
        return "the server lacks room or connections: give it some"
    return "nothing is lost and no attempt is counted; mend what it waits for"


def _partitions(snapshot: Snapshot) -> Iterator[Fault]:
    # A worker tells of its partitions every few seconds: a rebalance is no fault yet.
    unowned = [
        part
        for part in snapshot.partitions
        if part.owner is None and _still(part) > UNOWNED_SECONDS
    ]
    for topic in sorted({part.topic for part in unowned}):
        # While nobody works at all, one line says it.
        if not snapshot.workers or topic not in _consumed(snapshot):
            continue
        numbers = [part.partition for part in unowned if part.topic == topic]
        yield _fault(
            "partition.unowned",
            f"no worker has partitions {_numbers(numbers)} of topic {topic}",
            "a rebalance takes seconds; if it stays, see whether all workers run this version",
            subject=topic,
        )
    for part in snapshot.partitions:
        still = _still(part)
        if part.owner is not None and still > STUCK_SECONDS:
            yield _fault(
                "partition.stuck",
                f"partition {part.partition} of topic {part.topic} does not move for"
                f" {_span(still)}, {part.lag or 0:,} records wait",
                "see what its worker waits for; ending that worker hands the partition on",
                subject=f"{part.topic}/{part.partition}",
                since=part.moved,
            )
    for topic, waiting in snapshot.unserved:
        yield _fault(
            "topic.unserved",
            f"{waiting:,} {'message waits' if waiting == 1 else 'messages wait'} on topic {topic},"
            " which no worker reads any more",
            "start the workers that read it; if none does any more, name it under `topics`"
            " (`format: envelope`) or add its agent to `agents` again, until nothing waits there",
            subject=topic,
        )
    yield from _lag(snapshot)
    yield from _kept(snapshot)


def _still(part: Partition) -> float:
    """For how many seconds records wait and none was committed."""
    return (part.at - part.moved).total_seconds() if part.lag else 0.0


def _consumed(snapshot: Snapshot) -> frozenset[str]:
    return frozenset(snapshot.limits.topics) or frozenset(
        part.topic for part in snapshot.partitions
    )


def _lag(snapshot: Snapshot) -> Iterator[Fault]:
    for name, trend in snapshot.trends.items():
        gauge, _, topic = name.partition(":")
        grows = trend.now >= LEAST_LAG and trend.now > 2 * max(1.0, trend.before)
        if gauge == "lag" and grows and trend.seconds >= LEAST_TREND_SECONDS:
            yield _fault(
                "lag.grows",
                f"topic {topic} comes in faster than it is worked: {trend.before:,.0f} records"
                f" waited {_span(trend.seconds)} ago, now {trend.now:,.0f}",
                "add workers, up to one a partition, or see what slows them down",
                subject=topic,
            )


def _kept(snapshot: Snapshot) -> Iterator[Fault]:
    """What Kafka deletes before workers have read it."""
    limits = {limit.topic: limit.retention for limit in snapshot.retention}
    for part in snapshot.partitions:
        passed = (part.log_start or 0) - (part.committed or 0)
        if part.committed is not None and part.log_start is not None and passed > 0:
            others = part.topic in snapshot.limits.envelopes
            yield _fault(
                "retention.passed",
                f"Kafka has deleted {passed:,} records of topic {part.topic}, partition"
                f" {part.partition}, that nobody had read",
                "it is another system's topic: have its producer send them again, and have it keep"
                " its topic longer"
                if others
                else "the relay sends them again from the outbox;"
                " make topic.retention_hours longer",
                subject=f"{part.topic}/{part.partition}",
            )
            continue
        limit = limits.get(part.topic)
        if not part.lag or limit is None or part.worked is None:
            continue
        behind = (snapshot.at - part.worked).total_seconds()
        if behind > limit / 2:
            yield _fault(
                "retention.near",
                f"partition {part.partition} of topic {part.topic} is {_span(behind)} behind, and"
                f" Kafka keeps {_span(limit)}",
                "add workers, or make topic.retention_hours longer",
                subject=f"{part.topic}/{part.partition}",
            )


def _biz_types(snapshot: Snapshot) -> Iterator[Fault]:
    for waiting in snapshot.unknown:
        count = waiting.messages
        until = f" before {_time(waiting.until)}" if waiting.until is not None else ""
        yield _fault(
            "biz_type.unknown",
            f"{count} {'message waits' if count == 1 else 'messages wait'} since"
            f" {_time(waiting.since)} for a worker that knows biz_type {waiting.biz_type!r}",
            f"deploy one{until}, or run `streams biz-types retire`",
            subject=waiting.biz_type,
            since=waiting.since,
        )
    for rate in snapshot.failing:
        if _fails(rate):
            yield _fault(
                "biz_type.fails",
                f"every message of {rate.biz_type} fails: none was persisted in ten minutes",
                "see its causes (`streams dead list --group`); mend the handler, then replay",
                subject=rate.biz_type,
            )


def _fails(rate: Rate) -> bool:
    failed = (rate.dead + rate.retried) * 600
    return rate.consumed == 0 and failed >= LEAST_FAILED


def _dead(snapshot: Snapshot) -> Iterator[Fault]:
    for cause in snapshot.causes:
        if (snapshot.at - cause.first).total_seconds() < NEW_CAUSE_SECONDS:
            yield _fault(
                "dead.new_cause",
                f"a new cause of death since {_time(cause.first)}: {cause.biz_type}"
                f" {cause.error_code or ''}, {cause.messages:,} messages",
                f"see it (`streams dead list --error {cause.fingerprint}`), mend it, replay",
                subject=cause.fingerprint,
                since=cause.first,
            )
    if snapshot.recent_dead >= max(LEAST_DEAD, SPIKE * snapshot.usual_dead):
        yield _fault(
            "dead.spike",
            f"{snapshot.recent_dead:,} messages died in five minutes,"
            f" usually {snapshot.usual_dead:,.1f}",
            "see the causes (`streams dead list --group`); what was deployed a moment ago?",
        )
    since = snapshot.held_since
    if since is not None and (snapshot.at - since).total_seconds() > HELD_SECONDS:
        yield _fault(
            "conversations.held",
            f"conversations are held by {snapshot.totals.held:,} dead messages,"
            f" the first since {_time(since)}",
            "replay or discard the message, or let the conversation go on (`streams conversations"
            " release`)",
            since=since,
        )
    if snapshot.ending:
        yield _fault(
            "attempts.ending",
            f"{snapshot.ending:,} messages have at most three attempts left, then they are dead",
            "mend what they fail of: their error codes are in `streams conversations list`",
        )
    for lost in snapshot.deleted:
        yield _fault(
            "records.deleted",
            f"Kafka deleted up to {lost.records:,} records of topic {lost.topic}, partition"
            f" {lost.partition}, before anybody read them: offsets {lost.first} to {lost.last}",
            "only their producer has them: have it send them again; see outbox_rejects",
            subject=f"{lost.topic}/{lost.partition}",
            since=lost.at,
        )
    if snapshot.rejects:
        yield _fault(
            "rejects.arrive",
            f"{snapshot.rejects:,} records of the last ten minutes belong to no message",
            "somebody else writes to a topic of ours, or the database was restored:"
            " see outbox_rejects",
        )


def _audit(snapshot: Snapshot) -> Iterator[Fault]:
    proof, limit = snapshot.proof, snapshot.limits.audit_seconds
    if proof is not None and not proof.green:
        yield _fault(
            "audit.red",
            f"the audit of {_time(proof.at)} found {proof.wrong:,} things wrong",
            "run `streams audit`, it names them; `--repair` sends again what was lost",
            since=proof.at,
        )
    last = proof.at if proof is not None else snapshot.first_message_at
    if limit is None or last is None or (snapshot.at - last).total_seconds() <= limit:
        return
    how = "never audited" if proof is None else f"last audited {_time(proof.at)}"
    yield _fault(
        "audit.overdue",
        f"this deployment was {how}",
        "run `streams audit` every day",
        since=last,
    )


_RULES: Sequence[Callable[[Snapshot], Iterator[Fault]]] = (
    _database,
    _broker,
    _relays,
    _pins,
    _room,
    _retention,
    _sweep,
    _workers,
    _runs,
    _partitions,
    _biz_types,
    _dead,
    _audit,
)


def _numbers(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _span(seconds: float) -> str:
    """As a person says it: 40 s, 12 minutes, 3 hours, 2 days."""
    for unit, size in (("days", 172_800.0), ("hours", 7200.0), ("minutes", 120.0)):
        if seconds >= size:
            divisor = {"days": 86_400.0, "hours": 3600.0, "minutes": 60.0}[unit]
            return f"{seconds / divisor:,.0f} {unit}"
    return f"{seconds:.0f} s"


def _size(count: int) -> str:
    value, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        del units[0]
    return f"{value:,.0f} {units[0]}" if units[0] == "bytes" else f"{value:,.1f} {units[0]}"
