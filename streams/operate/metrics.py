"""A whole deployment for Prometheus, from one snapshot: whoever is asked says the same.

A query adds nothing up: `max without (instance)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric

from streams.figures.metrics import exposed
from streams.operate.faults import BY_COMMANDS, CODES, Fault
from streams.operate.snapshot import Rate, Snapshot

RATES = ("enqueued", "relayed", "consumed", "retried", "parked", "dead", "skipped")


def cluster_metrics(snapshot: Snapshot, faults: Iterable[Fault]) -> bytes:
    """The text that Prometheus reads."""
    return exposed(cluster_families(snapshot, faults))


def cluster_families(snapshot: Snapshot, faults: Iterable[Fault]) -> list[Metric]:
    """The same before it is written down: each metric with its samples."""
    return [
        *_messages(snapshot),
        *_flow(snapshot),
        *_relays(snapshot),
        *_workers(snapshot),
        *_care(snapshot),
        _faults(faults),
    ]


def _messages(snapshot: Snapshot) -> Iterator[Metric]:
    totals = snapshot.totals
    messages = _family(
        "outbox_messages", "Messages by status; pending and published up to a limit.", "status"
    )
    more = _family(
        "outbox_messages_more", "1 where there are more than outbox_messages says.", "status"
    )
    for status, count in (("pending", totals.pending), ("published", totals.published)):
        messages.add_metric([status], count.number)
        more.add_metric([status], int(count.more))
    for status in ("retrying", "parked", "replaying", "held", "dead"):
        messages.add_metric([status], getattr(totals, status))
    yield messages
    yield more
    causes = _family(
        "outbox_dead_messages", "Dead messages by cause.", "fingerprint", "biz_type", "error_code"
    )
    for cause in snapshot.causes:
        labels = [cause.fingerprint, cause.biz_type or "", cause.error_code or ""]
        causes.add_metric(labels, cause.messages)
    yield causes
    oldest = totals.oldest
    age = 0.0 if oldest is None else max(0.0, (snapshot.at - oldest).total_seconds())
    yield _gauge("outbox_oldest_message_seconds", "Age of the oldest message without a fate.", age)


def _flow(snapshot: Snapshot) -> Iterator[Metric]:
    rates = _family(
        "outbox_rate", "Messages a second over the last minute, about.", "biz_type", "what"
    )
    for rate in snapshot.rates:
        for name, value in _rates(rate):
            rates.add_metric([rate.biz_type, name], value)
    yield rates
    latency = _family(
        "outbox_latency_bound_seconds", "From enqueueing to persisting: at most.", "quantile"
    )
    for quantile, bound in (
        ("0.5", snapshot.latency.p50),
        ("0.95", snapshot.latency.p95),
        ("0.99", snapshot.latency.p99),
    ):
        if bound is not None:
            latency.add_metric([quantile], bound)
    yield latency
    messages = _family("outbox_gap_messages", "Messages that wait before a step.", "step")
    seconds = _family("outbox_gap_seconds", "How long the first of them has waited.", "step")
    for gap in snapshot.gaps:
        messages.add_metric([gap.name], gap.messages.number)
        if gap.seconds is not None:
            seconds.add_metric([gap.name], gap.seconds)
    yield messages
    yield seconds


def _rates(rate: Rate) -> Iterator[tuple[str, float]]:
    for name in RATES:
        yield name, getattr(rate, name)


def _relays(snapshot: Snapshot) -> Iterator[Metric]:
    leaders = _family("outbox_relay_leader", "1 while somebody leads.", "relay")
    standbys = _family("outbox_relay_standbys", "Relays that stand by.", "relay")
    rows = _family("outbox_relay_lag_rows", "Ids drawn since the floor.", "relay")
    seconds = _family("outbox_relay_lag_seconds", "Age of the oldest row above the floor.", "relay")
    held = _family("outbox_wal_held_bytes", "Log that the slot holds back.", "relay")
    safe = _family(
        "outbox_wal_safe_bytes", "What more may be written before the slot is lost.", "relay"
    )
    for relay in snapshot.relays:
        name = [relay.name]
        leaders.add_metric(name, int(relay.leader is not None))
        standbys.add_metric(name, len(relay.standbys))
        rows.add_metric(name, relay.lag.rows)
        seconds.add_metric(name, relay.lag.seconds)
        if relay.slot is not None:
            held.add_metric(name, relay.slot.held_bytes)
            if relay.slot.safe_bytes is not None:
                safe.add_metric(name, relay.slot.safe_bytes)
    yield from (leaders, standbys, rows, seconds, held, safe)


def _workers(snapshot: Snapshot) -> Iterator[Metric]:
    processes = _family("outbox_processes", "Processes with a sign of life.", "kind", "state")
    counts: dict[tuple[str, str], int] = {}
    for process in snapshot.processes:
        counts[process.kind, process.state] = counts.get((process.kind, process.state), 0) + 1
    for (kind, state), count in sorted(counts.items()):
        processes.add_metric([kind, state], count)
    yield processes
    lag = _family("outbox_lag_records", "Records before the group.", "topic", "partition")
    unowned = _family("outbox_partitions_unowned", "Partitions that no living worker has.", "topic")
    without: dict[str, int] = {}
    for part in snapshot.partitions:
        without[part.topic] = without.get(part.topic, 0) + (part.owner is None)
        if part.lag is not None:
            lag.add_metric([part.topic, str(part.partition)], part.lag)
    for topic, count in sorted(without.items()):
        unowned.add_metric([topic], count)
    yield lag
    yield unowned


def _care(snapshot: Snapshot) -> Iterator[Metric]:
    room = snapshot.room
    yield _gauge(
        "outbox_partition_room_ids", "Ids that partitions of the outbox are left for.", room.ids
    )
    if room.seconds is not None:
        yield _gauge("outbox_partition_room_seconds", "How long they last.", room.seconds)
    if snapshot.proof is not None:
        age = (snapshot.at - snapshot.proof.at).total_seconds()
        yield _gauge("outbox_audit_age_seconds", "Since the last audit.", age)
        yield _gauge("outbox_audit_wrong", "What it found wrong.", snapshot.proof.wrong)
    yield _gauge(
        "outbox_snapshot_timestamp_seconds", "When this was read.", snapshot.at.timestamp()
    )


def _faults(faults: Iterable[Fault]) -> Metric:
    """Each kind of fault that can be told here, with how many there are of it.

    An alert needs a 0 to end; of what nobody looks at here a 0 would be a lie.
    """
    family = _family(
        "outbox_fault", "Faults by kind (docs/monitoring/runbook.md).", "code", "severity"
    )
    counts = {code: 0 for code in CODES if code not in BY_COMMANDS}
    for fault in faults:
        counts[fault.code] = counts.get(fault.code, 0) + 1
    for code, count in counts.items():
        family.add_metric([code, CODES[code]], count)
    return family


def _family(name: str, about: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, about, labels=list(labels))


def _gauge(name: str, about: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, about, value=float(value))
