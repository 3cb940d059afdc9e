"""What `streams up --demo --trouble` adds: a slow biz_type, and poison.

The store of the slow one is away at times. The agent below is loaded by workers of that demo only.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from uuid import uuid4

import orjson
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from streams import Batch, Retry, agent, event

SLOW_SECONDS = 0.15
EVERY = 4.0  # seconds between two messages that cannot be kept

ENQUEUE = text("SELECT outbox_enqueue(:biz_type, :key, CAST(:payload AS json))")


@event("demo_summaries", topic="demo-summaries", key="chat_id")
@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSummary:
    """A summary of a chat, which a slow model writes.

    `away`: it nearly always finds its store away.
    """

    chat_id: str
    seconds: float = SLOW_SECONDS
    away: bool = False


@agent(DemoSummary, attempts=5, first_delay=2.0, most_delay=8.0, on_dead="hold")
async def summarize(messages: Batch[DemoSummary], db: AsyncConnection) -> None:
    """Take a while over each, and fail where the store is away."""
    for message in messages:
        await asyncio.sleep(message.payload.seconds)
        if message.payload.away and random.random() < 0.9:
            raise Retry("the store is away", outbox_id=message.outbox_id)


async def make_trouble(engine: AsyncEngine) -> None:
    """Enqueue what is slow, what fails for a while, what no worker can keep, until cancelled."""
    number = 0
    while True:
        await asyncio.sleep(EVERY / 4)
        number += 1
        chat = f"demo-trouble-{number % 7}"
        await _enqueue(engine, "demo_summaries", chat, {"chat_id": chat, "away": number % 23 == 0})
        if number % 4:
            continue
        chat = f"demo-{uuid4()}"
        message = {
            "user_id": 7,
            "conversation_id": chat,
            "role": "user",
            "message": "Will this be kept?",
        }
        # Of the wrong type, and missing.
        broken = {"user_id": "seven"} if number % 8 else {"role": None}
        await _enqueue(engine, "chat_history_persist", chat, message | broken)


async def _enqueue(
    engine: AsyncEngine, biz_type: str, key: str, payload: dict[str, object]
) -> None:
    async with engine.begin() as connection:
        await connection.execute(
            ENQUEUE, {"biz_type": biz_type, "key": key, "payload": orjson.dumps(payload).decode()}
        )
