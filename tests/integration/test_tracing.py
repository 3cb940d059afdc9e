"""Traces go on from the caller through enqueue, relay and worker into the handler.

They never hold what a message says.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import opentelemetry.trace
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from streams import outbox, telemetry
from streams.agents.chat_history import ChatHistoryPersist
from streams.database import async_engine
from streams.settings import load
from streams.testing import WouldWait, persist, retry
from tests.conftest import Eventually, World
from tests.fixtures.collector import Collector
from tests.fixtures.projects import importable

SECRET = "secret-canary"
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"
OTHER = "00-11111111111111111111111111111111-2222222222222222"
SAMPLED, UNSAMPLED = f"{CALLER}-01", f"{OTHER}-00"


def chat(**changes: Any) -> ChatHistoryPersist:
    message = {"user_id": 1, "conversation_id": "c1", "role": "user", "message": SECRET}
    return ChatHistoryPersist(**{**message, **changes})


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """What this process traces, for as long as the test."""
    found, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(found))
    monkeypatch.setattr(opentelemetry.trace, "get_tracer_provider", lambda: provider)
    return found


@pytest.fixture
async def engine(database: str) -> AsyncIterator[AsyncEngine]:
    engine = async_engine(database)
    yield engine
    await engine.dispose()


@pytest.fixture
async def db(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection in a transaction that is rolled back."""
    async with engine.connect() as connection:
        yield connection


@pytest.fixture(autouse=True)
def started(database: str) -> Iterator[None]:
    outbox.start(load(environ={"DATABASE_URL": database}))
    yield
    outbox.close()


async def stored(db: AsyncConnection) -> list[str | None]:
    return [
        row[0] for row in await db.exec_driver_sql("SELECT traceparent FROM outbox ORDER BY id")
    ]


def traceparent(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}"


def about(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def parent(span: ReadableSpan) -> str | None:
    return f"00-{span.parent.trace_id:032x}-{span.parent.span_id:016x}" if span.parent else None


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.name == name]


async def test_enqueue_writes_the_context_of_its_own_span(
    db: AsyncConnection, exporter: InMemorySpanExporter
) -> None:
    with opentelemetry.trace.get_tracer("business").start_as_current_span("request"):
        await outbox.enqueue(db, [chat(), chat()])
    await outbox.enqueue(db, chat(), traceparent=SAMPLED)
    enqueued, request = exporter.get_finished_spans()
    assert enqueued.name == "enqueue chat-history"
    assert enqueued.kind is opentelemetry.trace.SpanKind.PRODUCER
    assert parent(enqueued) == traceparent(request)
    written = await stored(db)
    assert [each and each.rpartition("-")[0] for each in written] == [
        traceparent(enqueued),
        traceparent(enqueued),
        CALLER,
    ]
    assert [each and int(each.rpartition("-")[2]) & 1 for each in written] == [1, 1, 1]


async def test_an_unsampled_context_is_written_with_its_flag(
    db: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    monkeypatch.setattr(opentelemetry.trace, "get_tracer_provider", lambda: provider)
    await outbox.enqueue(db, chat())
    [written] = await stored(db)
    assert written is not None and int(written.rpartition("-")[2]) & 1 == 0


async def test_nobody_traces_and_nothing_is_written(db: AsyncConnection) -> None:
    assert telemetry.tracer() is None
    await outbox.enqueue(db, chat())
    assert await stored(db) == [None]


async def test_a_failed_enqueue_is_marked_without_any_text(
    db: AsyncConnection, exporter: InMemorySpanExporter
) -> None:
    await db.execute(text("ALTER TABLE outbox ADD CHECK (payload::text = '')"))
    with pytest.raises(DBAPIError):
        await outbox.enqueue(db, chat())
    [span] = exporter.get_finished_spans()
    assert (span.status.is_ok, span.status.description, about(span)["error.type"]) == (
        False,
        None,
        "IntegrityError",
    )
    assert SECRET not in span.to_json()


async def test_a_message_and_its_handler_are_children_of_the_caller(
    db: AsyncConnection, exporter: InMemorySpanExporter
) -> None:
    outbox_id = await outbox.enqueue(db, chat(), traceparent=SAMPLED)
    await persist(db, [outbox_id])
    [transaction] = named(exporter, "persist chat-history")
    [message] = named(exporter, "process chat-history")
    assert parent(transaction) == parent(message) == CALLER
    assert about(message) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "chat-history",
        "messaging.destination.partition.id": "0",
        "messaging.message.id": str(outbox_id),
        "outbox.biz_type": "chat_history_persist",
        "outbox.attempt": 1,
        "outbox.status": "consumed",
    }
    assert about(transaction)["messaging.batch.message_count"] == 1
    assert [link.context for link in message.links] == [transaction.context]


async def test_callers_of_one_batch_keep_their_traces(
    db: AsyncConnection, exporter: InMemorySpanExporter
) -> None:
    ids = [
        await outbox.enqueue(db, chat(), traceparent=each)
        for each in (SAMPLED, f"{OTHER}-01", UNSAMPLED)
    ]
    await persist(db, ids)
    [transaction] = named(exporter, "persist chat-history")
    messages = named(exporter, "process chat-history")
    assert [parent(message) for message in messages] == [CALLER, OTHER]
    assert transaction.parent is None
    assert {link.context.trace_id for link in transaction.links} == {
        message.context.trace_id for message in messages if message.context
    }
    assert about(transaction)["messaging.batch.message_count"] == 3


@pytest.mark.parametrize(
    "broken",
    [
        f"{CALLER}-00",
        "",
        "nonsense",
        CALLER,
        f"{CALLER}-0",
        f"{SAMPLED}-more",
        "ff" + SAMPLED[2:],
        SAMPLED.upper(),
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "٣" * 55,
        "0" * 1000,
        "a\nb",
    ],
)
async def test_a_context_that_is_not_sampled_or_broken_is_no_trace_and_no_error(
    db: AsyncConnection, exporter: InMemorySpanExporter, broken: str
) -> None:
    outbox_id = await outbox.enqueue(db, chat(), traceparent=broken)
    assert (await persist(db, [outbox_id])).statuses == ["consumed"]
    assert exporter.get_finished_spans() == ()


async def test_each_attempt_is_a_span_with_its_number_and_its_outcome(
    db: AsyncConnection, exporter: InMemorySpanExporter
) -> None:
    await db.execute(text("ALTER TABLE chat_histories ADD UNIQUE (user_id)"))
    ids = [await outbox.enqueue(db, chat(), traceparent=SAMPLED) for _ in range(3)]
    broken = await db.scalar(
        text(
            "INSERT INTO outbox (biz_type, topic, key, payload, traceparent)"
            f" VALUES ('chat_history_persist', 'chat-history', 'c2', '{{}}', '{OTHER}-01')"
            " RETURNING id"
        )
    )
    fates = await persist(db, [*ids, broken])
    assert fates.statuses == ["consumed", "retrying", "parked", "dead"]
    await db.execute(text("ALTER TABLE chat_histories DROP CONSTRAINT chat_histories_user_id_key"))
    await retry(db)
    spans = [about(span) for span in named(exporter, "process chat-history")]
    told = [
        (
            int(span["messaging.message.id"]),
            span.get("outbox.attempt"),
            span["outbox.status"],
            span.get("error.type"),
        )
        for span in spans
    ]
    assert sorted(told[:4], key=lambda one: one[0]) == [
        (ids[0], 1, "consumed", None),
        (ids[1], 1, "retrying", "23505"),
        (ids[2], 1, "parked", None),
        (broken, None, "dead", "payload"),
    ]
    assert told[4:] == [(ids[1], 2, "consumed", None), (ids[2], 1, "consumed", None)]
    assert not any(SECRET in span.to_json() for span in exporter.get_finished_spans())


async def test_a_transaction_that_was_rolled_back_says_so_and_blames_no_message(
    db: AsyncConnection, exporter: InMemorySpanExporter
) -> None:
    outbox_id = await outbox.enqueue(db, chat(), traceparent=SAMPLED)
    await db.execute(text("ALTER TABLE agent_chats RENAME TO gone"))
    with pytest.raises(WouldWait):
        await persist(db, [outbox_id])
    assert named(exporter, "process chat-history") == []
    failed = named(exporter, "persist chat-history")
    assert [about(span)["error.type"] for span in failed] == ["42P01", "HandlerBroken"]
    assert all(not span.status.is_ok and span.events == () for span in failed)


NOTES = """
from dataclasses import dataclass
from opentelemetry import trace
from sqlalchemy.ext.asyncio import AsyncConnection
from streams import Batch, Retry, agent, event

@event("note_added", topic="notes", key="book")
@dataclass(frozen=True, slots=True, kw_only=True)
class NoteAdded:
    book: str
    note: str

@agent(NoteAdded)
async def save(notes: Batch[NoteAdded], db: AsyncConnection) -> None:
    with trace.get_tracer("mine").start_as_current_span("my handler"):
        if notes[0].attempts == 0:
            raise Retry(after=0.2)
"""


@pytest.mark.long
def test_who_does_not_trace_does_not_load_opentelemetry() -> None:
    code = (
        "import sys, streams.relay, streams.app; print([name for name in sys.modules if"
        " 'opentelemetry' in name])"
    )
    environ = {"DATABASE_URL": "postgresql://127.0.0.1:1/d", "BROKER_URL": "127.0.0.1:1"}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert ended.stdout == "[]\n"


@pytest.fixture
def diary(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The module of a user's agent, in this process and in those of its world."""
    (tmp_path / "diary.py").write_text(NOTES)
    (tmp_path / "faust.yml").write_text(
        "agents: [streams.agents, diary]\ntelemetry: {enabled: true}\n"
    )
    world.environ |= {"STREAMS_CONFIG": str(tmp_path / "faust.yml"), "PYTHONPATH": str(tmp_path)}
    importable(tmp_path, monkeypatch)
    outbox.start(world.settings)
    yield sys.modules["diary"]
    del sys.modules["diary"]


async def test_one_trace_leads_from_the_request_through_relay_and_worker_into_the_handler(
    world: World,
    diary: Any,
    engine: AsyncEngine,
    eventually: Eventually,
    exporter: InMemorySpanExporter,
) -> None:
    topic = f"{world.settings.broker.topic_prefix}notes"

    async def enqueue(traceparent: str | None = None) -> int:
        async with engine.begin() as connection:
            event = diary.NoteAdded(book="b1", note=SECRET)
            return int(await outbox.enqueue(connection, event, traceparent=traceparent))

    with Collector() as collector:
        world.environ |= {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "NO_PROXY": "127.0.0.1",
        }
        world.migrate()
        relay, worker = world.relay(), world.worker()
        await world.until_persisted([await enqueue(UNSAMPLED), await enqueue("nonsense")], 60)
        with opentelemetry.trace.get_tracer("business").start_as_current_span("request"):
            note = await enqueue()
        await world.until_persisted(note)
        # Relay and worker send theirs when they like, a message's before its transaction's.
        await eventually(lambda: collector.named(f"publish {topic}"))
        await eventually(lambda: len(collector.named(f"process {topic}")) == 2)
        await eventually(
            lambda: (
                {link for span in collector.named(f"process {topic}") for link in span.links}
                <= {span.span for span in collector.named(f"persist {topic}")}
            )
        )
    enqueued, request = exporter.get_finished_spans()
    assert (enqueued.name, parent(enqueued)) == (f"enqueue {topic}", traceparent(request))
    _, trace, caller = traceparent(enqueued).split("-")
    # Where no caller is known, the handler's own spans begin a trace.
    assert {span.name for span in collector.spans if span.trace != trace} <= {"my handler"}
    assert UNSAMPLED.split("-")[1] not in {span.trace for span in collector.spans}
    [published] = collector.named(f"publish {topic}")
    assert (published.service, published.parent, published.failed) == (
        "outbox-streams-relay",
        caller,
        False,
    )
    assert published.about["messaging.message.id"] == str(note)
    first, second = collector.named(f"process {topic}")
    assert (first.service, first.parent, second.parent) == ("outbox-streams-worker", caller, caller)
    assert [span.about["outbox.attempt"] for span in (first, second)] == [1, 2]
    assert [span.about["outbox.status"] for span in (first, second)] == ["retrying", "consumed"]
    assert (first.about["error.type"], first.failed, second.failed) == ("retry", True, False)
    transactions = {span.span: span for span in collector.named(f"persist {topic}")}
    assert {span.parent for span in transactions.values()} == {caller}
    assert first.links | second.links <= transactions.keys()
    mine = [span for span in collector.named("my handler") if span.trace == trace]
    assert mine and {span.parent for span in mine} <= transactions.keys()
    assert SECRET.encode() not in collector.raw
    # The collector is gone by now: that holds up nobody's end.
    await enqueue(SAMPLED)
    began = time.monotonic()
    await asyncio.gather(relay.stop(grace=25), worker.stop(grace=25))
    assert (relay.returncode, worker.returncode) == (0, 0)
    # OpenTelemetry itself would wait for half a minute.
    assert time.monotonic() - began < 20


@pytest.mark.long
@pytest.mark.parametrize(
    "command",
    [
        "from streams.cli import main; main(['relay'])",
        "import streams.app; streams.app.app.conf.Worker.keywords['check']()",
    ],
)
def test_without_the_extra_the_start_says_what_to_install(command: str, database: str) -> None:
    code = f"import sys; sys.modules['opentelemetry'] = None; {command}"
    environ = {
        "DATABASE_URL": database,
        "BROKER_URL": "127.0.0.1:1",
        "STREAMS_TELEMETRY__ENABLED": "true",
    }
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == (
        "streams: setting 'telemetry.enabled' is True: expected OpenTelemetry (opentelemetry is"
        " missing): run `pip install 'outbox-streams[otel]'`"
    )
