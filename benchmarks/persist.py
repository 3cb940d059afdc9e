"""What one batch of records does to PostgreSQL, outside its transaction.

The statements are the same for every contestant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, LiteralString, NamedTuple

import orjson

from streams.agents.chat_history import ChatHistoryPersist, chats_of
from streams.codec import decode
from streams.database import query
from streams.events import Batch, Message
from streams.worker.run.origin import digest
from streams.worker.run.transaction import IN_A_RUN


class Record(NamedTuple):
    """What a contestant reads of a Kafka record."""

    outbox_id: int
    offset: int
    key: str
    value: bytes
    time: int


def statements(
    topic: str, partition: int, records: Sequence[Record]
) -> list[tuple[LiteralString, dict[str, Any]]]:
    """Lock, claim and the two inserts of chat history, as the worker executes them."""
    batch = Batch(
        [Message(r.outbox_id, r.key, decode(r.value, ChatHistoryPersist), r.time) for r in records],
    )
    ids = [record.outbox_id for record in records]
    claim = {
        "topic": topic,
        "first": min(ids),
        "last": max(ids),
        "checked": False,
        "ids": "{" + ",".join(map(str, ids)) + "}",
        "partitions": "{" + ",".join([str(partition)] * len(records)) + "}",
        "offsets": "{" + ",".join([str(record.offset) for record in records]) + "}",
        "digest": digest(records),
    }
    return [
        (
            query("lock_partitions"),
            {"topic": topic, "partitions": [partition], "session": IN_A_RUN},
        ),
        (query("claim_all"), claim),
        (query("save_chat_histories"), {"messages": batch.parameter()}),
        (query("save_agent_chats"), {"chats": orjson.dumps(chats_of(batch)).decode()}),
    ]
