"""What the relay tells OpenTelemetry: a span for each row whose caller is traced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from streams import telemetry
from streams.relay.source.rows import Row

if TYPE_CHECKING:
    from opentelemetry.trace import Span

TRACEPARENT = 2  # its place among the headers


class Publication:
    """The open spans of rows that were read together.

    They end together, when all rows are with the broker.
    """

    def __init__(self, spans: dict[int, Span]) -> None:
        self._spans = spans

    def mark_dead(self, row: Row) -> None:
        """No record can carry this one."""
        if span := self._spans.pop(row.id, None):
            telemetry.fail(span, "unpublishable")
            span.end()

    def end(self, error: Any | None) -> None:
        """End the spans: all arrived, or, with librdkafka's error, nobody knows.

        What is left will be published again.
        """
        for span in self._spans.values():
            if error is not None:
                telemetry.fail(span, error.name())
            span.end()
        self._spans.clear()


def publication(rows: Sequence[Row]) -> Publication | None:
    """The spans of these rows; None when nobody traces, or no caller does."""
    tracer = telemetry.tracer()
    if tracer is None:
        return None
    from opentelemetry.trace import SpanKind

    spans = {}
    for row in rows:
        parent = telemetry.caller(row.headers[TRACEPARENT][1])
        if parent is not None and telemetry.sampled(parent):
            attributes = telemetry.attributes_of(
                "publish",
                "send",
                **{
                    "messaging.destination.name": row.topic,
                    "messaging.message.id": str(row.root_id),
                    "outbox.biz_type": row.biz_type,
                },
            )
            # Not a producer's by the conventions: the context that travels on is the caller's.
            spans[row.id] = tracer.start_span(
                f"publish {row.topic}", parent, SpanKind.CLIENT, attributes
            )
    return Publication(spans) if spans else None
