"""How a worker is doing, as it tells others: partitions, runs in flight, what it waits for."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import faust
from faust.exceptions import ConsumerNotStarted
from faust.types import TP

from streams.figures.process import Vitals
from streams.settings import Settings
from streams.worker.figures import PartitionLag, WorkerFigures
from streams.worker.health import Readiness, WorkerHealth
from streams.worker.run.persister import Persister


class WorkerVitals:
    """Reads it off a worker that runs; nothing here waits."""

    def __init__(
        self,
        app: faust.App,
        settings: Settings,
        persister: Persister,
        health: WorkerHealth,
        topic_ids: Mapping[str, str],
    ) -> None:
        # Faust's interface types lack what its classes have.
        self._app: Any = app
        self._settings, self._persister, self._health = settings, persister, health
        self._topic_ids = topic_ids

    def now(self) -> Vitals:
        """As it is in this moment."""
        readiness = self._readiness()
        waits = self._persister.waits.longest
        pool: Any = self._persister.database.engine.pool
        conf = self._app.conf
        return Vitals(
            kind="worker",
            name=self._settings.worker.group,
            address=f"{conf.web_bind}:{conf.web_port}" if conf.web_enabled else None,
            partitions=readiness.partitions,
            runs=self._runs(readiness.positions),
            pool_used=pool.checkedout(),
            pool_size=pool.size(),
            waits_for=waits[0] if waits else next(iter(readiness.reasons), None),
            waits_code=waits[1] if waits else None,
            waits_seconds=waits[2] if waits else (0.0 if readiness.reasons else None),
            figures=self._figures(),
        )

    def lags(self, figures: WorkerFigures) -> list[PartitionLag]:
        """How far it is in each of its partitions."""
        readiness = self._readiness()
        consumer: Any = self._app._consumer
        return [
            PartitionLag(
                topic=topic,
                partition=partition,
                topic_id=self._topic_ids.get(topic),
                committed=_number(position["committed"]),
                end=consumer.end_of(TP(topic, partition)) or None,
                worked=figures.worked_at(topic, partition),
            )
            for topic, positions in readiness.positions.items()
            if topic in readiness.partitions
            for partition, position in positions.items()
        ]

    def _readiness(self) -> Readiness:
        try:
            return self._health.readiness()
        except ConsumerNotStarted:
            return Readiness(reasons=["it starts"])

    def _runs(self, positions: Mapping[str, Any]) -> int:
        return sum(
            int(position["in_flight"] or 0)
            for topic in positions.values()
            for position in topic.values()
        )

    def _figures(self) -> dict[str, float]:
        """Those of Faust's figures that runs leave right; it counts events, and a run is one."""
        figures: dict[str, float] = {}
        with contextlib.suppress(ConsumerNotStarted, AttributeError):
            monitor = self._app.monitor
            figures["tables"] = float(len(self._app.tables))
            figures["assignments_completed"] = float(monitor.assignments_completed)
            figures["assignments_failed"] = float(monitor.assignments_failed)
            figures["rebalances"] = float(monitor.rebalances or 0)
            figures["messages_sent"] = float(monitor.messages_sent)
        return figures


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None
