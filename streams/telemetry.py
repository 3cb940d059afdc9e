"""OpenTelemetry where a process uses it; where it does not, neither an import nor a span.

Business code that traces has loaded OpenTelemetry itself, and set it up. Relay and worker do so
when `telemetry.enabled` says so. Error texts are never recorded: they can hold what a message
says.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from streams.errors import SettingsInvalid
from streams.settings import Telemetry

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

NAME = "outbox-streams"
SYSTEM = {"messaging.system": "kafka"}
CLOSE_SECONDS = 1.0

_provider: TracerProvider | None = None


def setup(settings: Telemetry, process: str) -> None:
    """Send this process's spans where the OTEL_* variables say.

    Only if that is enabled and nobody else has set it up. SettingsInvalid when OpenTelemetry is not
    installed, or cannot use a variable.
    """
    global _provider
    if not settings.enabled:
        return
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingsInvalid(
            f"setting 'telemetry.enabled' is True: expected OpenTelemetry ({error.name} is"
            " missing): run `pip install 'outbox-streams[otel]'`"
        ) from None
    if tracer() is not None:
        return
    try:
        resource = Resource.create()
        if str(resource.attributes.get("service.name", "unknown_service")).startswith(
            "unknown_service"
        ):
            resource = resource.merge(Resource({"service.name": f"{NAME}-{process}"}))
        # Its own end would wait half a minute for a collector that is away: `close` does not.
        _provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except ValueError as error:
        raise SettingsInvalid(f"OpenTelemetry refuses an OTEL_* variable: {error}") from None
    trace.set_tracer_provider(_provider)


def close() -> None:
    """Send what `setup` has not sent yet.

    The end of the process never waits for a collector that is away.
    """
    if _provider is not None:
        ending = threading.Thread(target=_provider.shutdown, name="telemetry", daemon=True)
        ending.start()
        ending.join(CLOSE_SECONDS)


def tracer() -> Tracer | None:
    """The tracer of this process; None while nobody has set OpenTelemetry up."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    tracer_of_provider: Tracer = provider.get_tracer(NAME, _version())
    return tracer_of_provider


@contextmanager
def enqueueing(topics: Collection[str], traceparent: str | None) -> Iterator[str | None]:
    """The traceparent to write.

    It is the one given, else that of a span around the block, where the caller traces.
    """
    trace: Any = sys.modules.get("opentelemetry.trace")
    if traceparent is not None or trace is None:
        yield traceparent
        return
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    [topic, *others] = sorted(topics)
    name, about = (
        ("enqueue", {}) if others else (f"enqueue {topic}", {"messaging.destination.name": topic})
    )
    attributes = attributes_of("enqueue", "create", **about)
    span: Span = trace.get_tracer(NAME, _version()).start_span(
        name, kind=trace.SpanKind.PRODUCER, attributes=attributes
    )
    with trace.use_span(
        span, end_on_exit=True, record_exception=False, set_status_on_exception=False
    ):
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
        try:
            yield carrier.get("traceparent")
        except Exception as error:
            fail(span, type(error).__name__)
            raise


def caller(traceparent: str | bytes | None) -> Context | None:
    """The context of a message's caller, to be a parent.

    None when there is none, or it is broken.
    """
    if not traceparent:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    text = traceparent if isinstance(traceparent, str) else traceparent.decode("ascii", "replace")
    return TraceContextTextMapPropagator().extract({"traceparent": text}) or None


def sampled(caller: Context) -> bool:
    """Whether the caller wants to see what becomes of its message.

    Where it does not, nothing is recorded.
    """
    from opentelemetry.trace import get_current_span

    return get_current_span(caller).get_span_context().trace_flags.sampled


def attributes_of(name: str, kind: str, **others: Any) -> Mapping[str, Any]:
    """A span's attributes by the semantic conventions of messaging."""
    return {**SYSTEM, "messaging.operation.name": name, "messaging.operation.type": kind, **others}


def fail(span: Span, code: str) -> None:
    """Mark a span as failed, by a code without any text."""
    from opentelemetry.trace import StatusCode

    span.set_status(StatusCode.ERROR)
    span.set_attribute("error.type", code)


@cache
def _version() -> str:
    from importlib.metadata import version

    return version(NAME)
