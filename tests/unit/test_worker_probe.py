"""How long it may take to learn that nothing waits, before it is asked by conversation."""

from __future__ import annotations

from streams.worker.failure.probe import AVOIDED_SECONDS, SLOW_SECONDS, Probe


def test_a_topic_is_asked_by_conversation_for_a_minute_after_two_slow_probes_in_a_row() -> None:
    now = 100.0
    probe = Probe(lambda: now)
    for seconds in (2 * SLOW_SECONDS, SLOW_SECONDS / 2, 2 * SLOW_SECONDS):
        probe.took(seconds)
        assert not probe.slow
    probe.took(2 * SLOW_SECONDS)
    assert probe.slow
    now += AVOIDED_SECONDS
    assert not probe.slow
    probe.took(2 * SLOW_SECONDS)
    assert not probe.slow
