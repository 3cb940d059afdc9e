"""Spans of rows on their way: one for each caller who is traced, ended by the broker's answer."""

from __future__ import annotations

import opentelemetry.trace
import pytest
from confluent_kafka import KafkaError
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from streams.relay.sink.in_flight import InFlight
from streams.relay.sink.spans import publication
from streams.relay.source.rows import Row

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    found, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(found))
    monkeypatch.setattr(opentelemetry.trace, "get_tracer_provider", lambda: provider)
    return found


def row(number: int, traceparent: str | bytes | None, resend_of: bytes | None = None) -> Row:
    headers: list[tuple[str, str | bytes | None]] = [
        ("id", str(number).encode()),
        ("biz_type", b"chat"),
        ("traceparent", traceparent),
        ("resend_of", resend_of),
    ]
    return Row("chats", b"c1", b"{}", 1, headers)


def outcomes(exporter: InMemorySpanExporter) -> list[tuple[object, object]]:
    spans = [dict(span.attributes or {}) for span in exporter.get_finished_spans()]
    return [(span["messaging.message.id"], span.get("error.type")) for span in spans]


def test_rows_of_one_flight_end_together_when_all_have_landed(
    exporter: InMemorySpanExporter,
) -> None:
    rows = [
        row(1, f"{TRACE}01"),
        row(2, None),
        row(3, f"{TRACE}00"),
        row(4, f"{TRACE}01".encode(), b"1"),
        row(5, b"\xff"),
    ]
    flight = InFlight().start(len(rows), 10, 1)
    flight.trace = publication(rows)
    for _ in rows[1:]:
        flight.acknowledged(None, None)
    assert outcomes(exporter) == []
    flight.acknowledged(None, None)
    assert outcomes(exporter) == [("1", None), ("1", None)]


def test_spans_of_dead_and_of_failed_rows_say_so_by_a_code(
    exporter: InMemorySpanExporter,
) -> None:
    rows = [row(1, f"{TRACE}01"), row(2, f"{TRACE}01")]
    flight = InFlight().start(2, 10, 1)
    flight.trace = trace = publication(rows)
    assert trace is not None
    trace.mark_dead(rows[0])
    flight.acknowledged(None, None)
    flight.acknowledged(KafkaError(KafkaError._PURGE_QUEUE), None)
    flight.acknowledged(KafkaError(KafkaError._PURGE_QUEUE), None)
    assert outcomes(exporter) == [("1", "unpublishable"), ("2", "_PURGE_QUEUE")]


def test_without_a_caller_who_traces_there_is_nothing_to_end(
    exporter: InMemorySpanExporter,
) -> None:
    assert publication([row(1, None), row(2, f"{TRACE}00")]) is None


def test_without_a_provider_nobody_looks_at_the_rows() -> None:
    assert publication([row(1, f"{TRACE}01")]) is None
