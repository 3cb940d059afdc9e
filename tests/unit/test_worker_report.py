"""What a worker logs of a run in which many messages failed: one line a reason."""

from __future__ import annotations

import pytest

from streams.worker import topic_agent
from streams.worker.run.attempt import Outcome
from streams.worker.set_aside import SetAside


def aside(outbox_id: int, status: str, code: str | None, partition: int = 0) -> SetAside:
    return SetAside(
        outbox_id=outbox_id,
        key="c",
        partition=partition,
        status=status,
        attempts=3,
        code=code,
        due=None,
    )


def test_a_thousand_failures_for_one_reason_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    asides = [aside(n, "dead", "23514") for n in range(1, 1001)]
    asides += [
        aside(2001, "retrying", "23503"),
        aside(2002, "dead", "23514", 1),
        aside(2003, "parked", None),
    ]
    with caplog.at_level("INFO", logger="streams.worker"):
        topic_agent._report("t", "", Outcome(set_aside=asides))
    lines = [
        tuple(
            record.__dict__.get(name)
            for name in ("message", "partition", "outbox_id", "status", "error_code", "count")
        )
        for record in caplog.records
    ]
    assert lines == [
        ("messages set aside", 0, 1, "dead", "23514", 1000),
        ("messages set aside", 0, 2001, "retrying", "23503", 1),
        ("messages set aside", 1, 2002, "dead", "23514", 1),
        ("messages parked behind an open one", None, None, None, None, 1),
    ]
