"""Chat history: a batch's messages into chat_histories and their chats into agent_chats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec
import orjson
from sqlalchemy.ext.asyncio import AsyncConnection

from streams import Batch, Effect, Tally, agent, event
from streams.database import statement

BigInt = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


@event("chat_history_persist", topic="chat-history", key="conversation_id")
@dataclass(frozen=True, slots=True, kw_only=True)
class ChatHistoryPersist:
    """One message of a conversation; the JSON names are the field names."""

    user_id: BigInt
    conversation_id: str
    role: str
    message: str
    reasoning_content: str | None = None
    reasoning_duration_seconds: BigInt | None = None
    retry_group_id: str | None = None
    retry_index: BigInt | None = None
    retry_from_user_message_id: BigInt | None = None
    retry_from_assistant_message_id: BigInt | None = None
    tokens_consumed: BigInt | None = None


EFFECT = Effect(
    table="chat_histories",
    source="source",
    fields={
        "user_id": "user_id",
        "conversation_id": "chat_id",
        "role": "role",
        "message": "message_content",
        "reasoning_content": "reasoning_content",
        "reasoning_duration_seconds": "reasoning_duration_seconds",
        "retry_group_id": "retry_group_id",
        "retry_index": "retry_index",
        "retry_from_user_message_id": "retry_from_user_message_id",
        "retry_from_assistant_message_id": "retry_from_assistant_message_id",
        "tokens_consumed": "tokens_consumed",
    },
    created_at="created_at",
    order="id",
    tally=Tally(table="agent_chats", keys=("user_id", "chat_id"), count="message_count"),
)


@agent(ChatHistoryPersist, effect=EFFECT)
async def save(messages: Batch[ChatHistoryPersist], db: AsyncConnection) -> None:
    """Write the batch; the caller's transaction makes it exactly-once."""
    await db.execute(statement("save_chat_histories"), {"messages": messages.parameter()})
    await db.execute(
        statement("save_agent_chats"), {"chats": orjson.dumps(chats_of(messages)).decode()}
    )


def chats_of(messages: Batch[ChatHistoryPersist]) -> list[tuple[int, str, int, int]]:
    """Each chat of the batch once, in key order.

    Two batches that take them in one order never wait for each other in a circle.
    """
    counts: dict[tuple[int, str], tuple[int, int]] = {}
    for message in messages:
        payload, created_ms = message.payload, message.created_ms
        chat = payload.user_id, payload.conversation_id
        count, last = counts.get(chat, (0, created_ms))
        counts[chat] = count + 1, created_ms if created_ms > last else last
    return [(*chat, *tally) for chat, tally in sorted(counts.items())]
