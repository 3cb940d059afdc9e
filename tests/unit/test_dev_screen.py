"""Without a terminal the live line becomes an occasional plain one."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from streams.dev import screen
from streams.dev.counters import Counts
from streams.dev.downloads import Progress
from streams.dev.screen import Screen, describe

KAFKA = "org.apache.kafka:kafka_2.13:4.3.0+org.slf4j:slf4j-simple:1.7.36"


def test_a_download_says_what_and_how_much() -> None:
    assert (
        describe(Progress(KAFKA, 23, 46, 31_200_000))
        == "kafka_2.13 4.3.0, once: 23 of 46 files, 31.2 MB"
    )
    assert describe(Progress(KAFKA, 5, None, 100_000)).startswith(
        "kafka_2.13 4.3.0, once: looking up what it needs"
    )


def test_without_a_terminal_progress_is_plain_lines_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = StringIO()
    with Screen(Console(file=out, soft_wrap=True)) as shown:
        shown.line("postgresql  postgresql://postgres@127.0.0.1:1/streams")
        for files in range(100):
            shown.download(Progress(KAFKA, files, 100, files))
        monkeypatch.setattr(screen, "COUNTS_SECONDS", 0.0)
        shown.counts(
            Counts(committed=12_000, relayed=11_990, persisted=11_980, lag_seconds=0.25),
            rolled_back=7,
        )
    assert out.getvalue().splitlines() == [
        "postgresql  postgresql://postgres@127.0.0.1:1/streams",
        "downloading kafka_2.13 4.3.0, once: 0 of 100 files, 0.0 MB",
        (
            "enqueued 12,000   rolled back 7   relayed 11,990   persisted 11,980   lag 20 messages,"
            " 0.2 s"
        ),
    ]


def test_on_a_terminal_the_counts_are_one_live_line() -> None:
    out = StringIO()
    with Screen(Console(file=out, force_terminal=True, width=120, soft_wrap=True)) as shown:
        shown.counts(Counts(committed=3), rolled_back=1)
        shown.line("a line above it")
    assert "a line above it" in out.getvalue()
    assert "enqueued 3" in out.getvalue()
