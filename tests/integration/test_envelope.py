"""Envelope topics on a real worker: another system's producer stays as it is, its messages get the same fate as ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.conftest import World
from tests.fixtures.seed import Seed

Eventually = Callable[..., Any]


@pytest.fixture
def seed(world: World, tmp_path: Path) -> Seed:
    """Notes from another system, that fail on demand."""
    return Seed(world, tmp_path)


async def test_messages_are_persisted_once_beside_ours_with_the_same_ids(seed: Seed, eventually: Eventually) -> None:
    ours = seed.notes.send("a", "ours 0", "ours 1")
    ids = seed.send("a", "a0", "a1", "a2")
    assert ours == ids[:2]
    text = orjson.dumps({"book": "a", "note": "a3"}).decode()
    inner = orjson.dumps({"outbox_id": "4", "biz_type": "mark_added", "payload": text, "more": [1]})
    chat = {"user_id": 7, "conversation_id": "c", "role": "user", "message": "hi \u00e9 \U0001f40d"}
    seed.raw(inner, inner, key="a")
    seed.raw(orjson.dumps({"outbox_id": 5, "biz_type": "chat_history_persist", "payload": chat}))
    seed._next = 1
    seed.send("a", "a0", "a1")
    seed.world.worker()
    await eventually(lambda: seed.all([1, 2, 3, 4, 5], "consumed"), 60)
    await eventually(lambda: seed.notes.all(ours, "consumed"), 30)
    assert seed.saved("a") == ["a0", "a1", "a2", "a3"]
    assert seed.notes.saved("a")[-2:] == ["ours 0", "ours 1"] or len(seed.notes.saved("a")) == 6
    assert seed.world.query("SELECT source, outbox_id, chat_id, message_content FROM chat_histories") == [
        ("seed", 5, "c", "hi \u00e9 \U0001f40d")
    ]
    assert seed.world.query("SELECT chat_id, message_count FROM agent_chats") == [("c", 1)]
    assert seed.world.query("SELECT count(*) FROM outbox_rejects") == [(0,)]
