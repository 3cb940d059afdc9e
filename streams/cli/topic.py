"""`streams topic tail`: the records of a topic as they arrive.

Their text is left out unless it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from streams.broker import kafka
from streams.cli.choose import Commands, say
from streams.envelope import NoEnvelope, opened
from streams.errors import UsageError
from streams.registry import configured
from streams.settings import Settings, load
from streams.terminal import printable, time_of


@click.group(cls=Commands)
def topic() -> None:
    """Look into topics."""


@topic.command()
@click.argument("name", metavar="[TOPIC]", required=False)
@click.option(
    "--from-beginning", is_flag=True, help="Begin with the oldest record instead of the next one."
)
@click.option(
    "-n", "count", type=click.IntRange(min=1), help="End after this many records; default: never."
)
@click.option(
    "--values", is_flag=True, help="Show each value's text: it may be what your users wrote."
)
def tail(name: str | None, from_beginning: bool, count: int | None, values: bool) -> None:
    """Print records: partition, offset, id, biz_type, key, time, size.

    TOPIC may be left out when all agents consume one topic.
    """
    settings = load()
    for number, message in enumerate(
        _records(settings, name or _only(settings), from_beginning), start=1
    ):
        say(describe(message, values=values))
        if number == count:
            break


def describe(message: Message, *, values: bool) -> str:
    """One line for one record; what could upset a terminal is escaped."""
    value = message.value()
    headers: dict[str, Any] = kafka.headers(message) or _envelope(value)
    millis = message.timestamp()[1]
    parts = [
        f"partition={message.partition()}",
        f"offset={message.offset()}",
        f"id={_text(headers.get('id'))}",
        f"biz_type={_text(headers.get('biz_type'))}",
        f"key={_text(message.key())}",
        f"time={time_of(millis)}",
        f"size={'null' if value is None else len(value)}",
    ]
    if headers.get("resend_of"):
        parts.append(f"resend_of={_text(headers['resend_of'])}")
    if values:
        parts.append(f"value={_text(value)}")
    return " ".join(parts)


def _records(settings: Settings, name: str, from_beginning: bool) -> Iterator[Message]:
    group = {
        "group.id": "outbox-streams-tail",
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
    }
    consumer = Consumer(kafka.client(settings) | group)
    try:
        try:
            metadata = consumer.list_topics(timeout=kafka.TIMEOUT).topics.get(name)
        except KafkaException as error:
            raise kafka.unreachable(settings, error) from None
        if metadata is None:
            raise UsageError(f"topic {name!r} does not exist")
        start = OFFSET_BEGINNING if from_beginning else OFFSET_END
        consumer.assign(
            [TopicPartition(name, partition, start) for partition in metadata.partitions]
        )
        while True:
            message = consumer.poll(0.5)
            if message is None:
                continue
            problem = message.error()
            if problem is None:
                yield message
            elif problem.code() != KafkaError._PARTITION_EOF:
                raise kafka.unreachable(settings, KafkaException(problem))
    finally:
        consumer.close()


def _envelope(value: bytes | None) -> dict[str, str]:
    """What the headers would say of another system's message."""
    try:
        outbox_id, biz_type, _ = opened(value)
    except NoEnvelope:
        return {}
    return {"id": str(outbox_id), "biz_type": biz_type}


def _only(settings: Settings) -> str:
    topics = configured(settings).topics
    if len(topics) != 1:
        raise UsageError(f"name one of the topics: {', '.join(topics)}")
    return topics[0]


def _text(raw: str | bytes | None) -> str:
    if raw is None:
        return "null"
    text = raw.decode(errors="backslashreplace") if isinstance(raw, bytes) else raw
    return printable(text)
