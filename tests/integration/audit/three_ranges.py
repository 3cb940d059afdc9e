"""Three ranges of messages on a bench without Kafka: how tests audit them and read the answer."""

from __future__ import annotations

from typing import Any

import streams.audit
from streams.audit import Report
from streams.database import migrate
from tests.fixtures.simulation import Bench

WIDTH = 10
ROWS = 30


def audit(bench: Bench, **more: Any) -> Report:
    """As `streams audit` does it."""
    options = {"patience": 0.0, "age": 1e9} | more
    with migrate.connection(bench.settings) as connection:
        return streams.audit.audit(connection, bench.settings, bench.registry, **options)


def lose(bench: Bench, outbox_id: int) -> None:
    """It was published, and nobody persisted it."""
    bench.connection.execute("DELETE FROM notes WHERE outbox_id = %s", [outbox_id])
    bench.connection.execute("DELETE FROM outbox_state WHERE outbox_id = %s", [outbox_id])


def missing(report: Report) -> list[int]:
    """The ids that the report calls missing."""
    return [example["outbox_id"] for example in report.wrong["missing"]["examples"]]
