"""What one process counted, for Prometheus: by biz_type since it began; never a key as a label."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from streams.figures import histogram
from streams.figures.counters import COUNTED, Counters
from streams.figures.process import Vitals

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Families(Collector):
    """Metrics that are there already, as a registry takes them."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterable[Metric]:
        """All of them."""
        return self._families


def exposed(families: Iterable[Metric]) -> bytes:
    """The text that Prometheus reads.

    It comes from a registry of our own: nothing of the host program's is in it.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Families(families))
    return generate_latest(registry)


def process_metrics(counters: Counters, vitals: Vitals) -> bytes:
    """What this process did since it began, and what it does now."""
    return exposed(process_families(counters, vitals))


def process_families(counters: Counters, vitals: Vitals) -> list[Metric]:
    """The same before it is written down: each metric with its samples."""
    return [*_counts(counters), *_vitals(vitals)]


def _counts(counters: Counters) -> Iterator[Metric]:
    tallies = sorted(counters.total.items())
    for name in COUNTED:
        family = CounterMetricFamily(
            f"outbox_worker_{name}", f"Messages {name} by this process.", labels=["biz_type"]
        )
        for biz_type, tally in tallies:
            family.add_metric([biz_type], getattr(tally, name))
        yield family
    times = HistogramMetricFamily(
        "outbox_worker_latency_seconds",
        "From enqueueing to persisting; the sum is not known.",
        labels=["biz_type"],
    )
    for biz_type, tally in tallies:
        if tally.consumed:
            times.add_metric([biz_type], buckets=_buckets(tally.latency), sum_value=None)
    yield times


def _buckets(counts: list[int]) -> list[tuple[str, float]]:
    """As Prometheus has them: each with all that were faster."""
    seen, buckets = 0, []
    for bound, count in zip(histogram.BOUNDS, counts, strict=True):
        seen += count
        buckets.append(("+Inf" if bound == float("inf") else f"{bound:.6g}", float(seen)))
    return buckets


def _vitals(vitals: Vitals) -> Iterator[Metric]:
    parameters = vitals.parameters()
    for name, about, value in (
        ("memory_bytes", "Resident memory.", parameters["memory"]),
        ("runs", "Runs in flight.", vitals.runs),
        ("pool_used", "Connections in use.", vitals.pool_used),
        ("pool_size", "Connections that there may be.", vitals.pool_size),
        ("waits_seconds", "For how long its oldest waiting run waits.", vitals.waits_seconds or 0),
    ):
        if value is not None:
            yield GaugeMetricFamily(f"outbox_{vitals.kind}_{name}", about, value=float(value))
    owned = GaugeMetricFamily(
        f"outbox_{vitals.kind}_partitions", "Partitions that it has.", labels=["topic"]
    )
    for topic, numbers in vitals.partitions.items():
        owned.add_metric([topic], len(numbers))
    yield owned
    info = GaugeMetricFamily("outbox_build", "Its version.", labels=["version"])
    info.add_metric([parameters["version"]], 1)
    yield info
