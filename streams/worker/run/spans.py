"""What a worker tells OpenTelemetry: a span a transaction, and one for each traced message."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from streams import telemetry
from streams.worker.delivery import Delivery
from streams.worker.failure.classify import describe
from streams.worker.set_aside import SetAside

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span

MOST_LINKS = 128  # what OpenTelemetry keeps of them


class RunSpans:
    """Around one transaction: its spans say what was committed, or why nothing was.

    In the latter case it is one span. Nothing happens where nobody traces, and no message has a
    caller who does.
    """

    def __init__(self, topic: str, set_aside: Sequence[SetAside]) -> None:
        self._topic, self._set_aside = topic, set_aside
        self._tracer = telemetry.tracer()
        self._start = time.time_ns() if self._tracer else 0
        self._callers: dict[int, Context] = {}
        self._turns: dict[int, Delivery] = {}
        self._span: Span | None = None

    async def __aenter__(self) -> RunSpans:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._span is None:
            return
        if error is not None:
            telemetry.fail(self._span, describe(error)[0])
        else:
            self._tell()
        self._span.end()

    @asynccontextmanager
    async def handling(
        self, turns: Sequence[Delivery], execute: Callable[..., Awaitable[list[tuple[Any, ...]]]]
    ) -> AsyncIterator[None]:
        """Around the handlers, whose own spans become children of the transaction's.

        `execute` asks for the callers.
        """
        if self._tracer is None:
            yield
            return
        from opentelemetry.trace import get_current_span, use_span

        called = {delivery.outbox_id: delivery for delivery in turns}
        self._turns |= called
        ids = [*called, *(fate.outbox_id for fate in self._set_aside)]
        # Asked of the outbox: a retry has no record to read it from, and decoding stays as it is
        # for those who do not trace.
        rows = await execute("traceparents", topic=self._topic, ids=ids)
        callers = {
            outbox_id: caller for outbox_id, text in rows if (caller := telemetry.caller(text))
        }
        sampled = {
            outbox_id: caller for outbox_id, caller in callers.items() if telemetry.sampled(caller)
        }
        self._callers |= sampled
        if sampled:
            current = self._span = self._span or self._begin()
        elif callers:
            # Their callers are not sampled: neither is what the handlers do for them.
            current = get_current_span(next(iter(callers.values())))
        else:
            yield
            return
        with use_span(current, record_exception=False, set_status_on_exception=False):
            yield

    def _begin(self) -> Span:
        """Begin the transaction's span.

        It is a child of the caller if there is one only, else a trace of its own that links to all.
        """
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind

        assert self._tracer is not None
        links = {link.context.span_id: link for link in map(_link, self._callers.values())}
        parent = next(iter(self._callers.values())) if len(links) == 1 else Context()
        attributes = self._attributes(
            "persist",
            **{
                "messaging.batch.message_count": sum(
                    turn.message is not None for turn in self._turns.values()
                )
            },
        )
        kept = list(links.values())[:MOST_LINKS]
        return self._tracer.start_span(
            f"persist {self._topic}", parent, SpanKind.CONSUMER, attributes, kept, self._start
        )

    def _tell(self) -> None:
        """One span for each message whose caller is traced: this attempt, and what came of it."""
        from opentelemetry.trace import Link, SpanKind

        assert self._tracer is not None
        assert self._span is not None
        set_aside = {fate.outbox_id: fate for fate in self._set_aside}
        links = [Link(self._span.get_span_context())]
        for outbox_id, parent in self._callers.items():
            fate, turn = set_aside.get(outbox_id), self._turns.get(outbox_id)
            about: dict[str, Any] = {
                "messaging.message.id": str(outbox_id),
                "messaging.destination.partition.id": str((turn or fate).partition),  # type: ignore[union-attr]
                "outbox.status": fate.status if fate else "consumed",
            }
            if turn and turn.message:
                about |= {
                    "outbox.biz_type": turn.biz_type,
                    "outbox.attempt": turn.message.attempts + 1,
                }
            attributes = self._attributes("process", **about)
            span = self._tracer.start_span(
                f"process {self._topic}", parent, SpanKind.CONSUMER, attributes, links, self._start
            )
            if fate and fate.status in ("retrying", "dead"):
                telemetry.fail(span, fate.code or fate.status)
            span.end()

    def _attributes(self, name: str, **others: Any) -> Any:
        return telemetry.attributes_of(
            name, "process", **{"messaging.destination.name": self._topic, **others}
        )


def _link(caller: Context) -> Link:
    from opentelemetry.trace import Link, get_current_span

    return Link(get_current_span(caller).get_span_context())
