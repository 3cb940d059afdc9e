"""A cluster none of whose brokers takes work, in processes that look at it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from streams.dev.kafka import KafkaBroker
from streams.dev.process import Process

# With a sign of life every four seconds and a session of one it is fenced most of the time.
FENCED = {"broker.session.timeout.ms": "1000", "broker.heartbeat.interval.ms": "4000"}
LOOK = """
import sys, time
from streams.broker.topics import Survey
from streams.errors import ServiceUnreachable
from streams.settings import load

survey, seen = Survey(load(environ={"BROKER_URL": sys.argv[1]})), [1]
while len(seen) < 5:
    try:
        count = len(survey.look([]).brokers)
    except ServiceUnreachable:
        count = 0
    if count != seen[-1]:
        seen.append(count)
    time.sleep(0.02)
print(*seen)
"""


@pytest.mark.long
async def test_whoever_looks_at_a_cluster_of_fenced_brokers_finds_it_away_and_goes_on(
    quick: Path, tmp_path: Path
) -> None:
    """librdkafka aborted the process of a relay or worker that just looked at its topics."""
    broker = KafkaBroker(quick / "fenced", settings=FENCED)
    await broker.start()
    try:
        looking = Process((sys.executable, "-c", LOOK, broker.url), tmp_path / "log")
        looking.launch()
        assert await looking.finish(120) == 0, looking.last_words()
    finally:
        broker.kill()
    assert looking.last_words() == "1 0 1 0 1"
