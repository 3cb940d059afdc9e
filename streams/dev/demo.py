"""The demo's business service: many people chat at once, each message is one transaction."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import click
import msgspec
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from streams import outbox
from streams.agents.chat_history import ChatHistoryPersist
from streams.database import async_engine
from streams.dev.conversations import Turn, chat
from streams.dev.scoreboard import Played
from streams.groups import TaskGroup
from streams.settings import load

# The demo's own business table: who is in which chat, and how many messages it has.
TABLE = """
CREATE TABLE IF NOT EXISTS demo_chats (
    chat_id  text PRIMARY KEY,
    user_id  bigint NOT NULL,
    messages integer NOT NULL
)"""
# A message of the chat, as the business counts them.
COUNT_MESSAGE = text("""
INSERT INTO demo_chats AS c (chat_id, user_id, messages)
VALUES (:chat_id, :user_id, 1)
ON CONFLICT (chat_id) DO UPDATE SET messages = c.messages + 1""")
ROLLED_BACK = 1 / 20


class Refused(Exception):
    """The business changed its mind.

    The transaction rolls back, and its message must appear nowhere.
    """


@dataclass(slots=True)
class Service:
    """A business service with an outbox; `pause` gives the seconds until a chat's next message."""

    engine: AsyncEngine
    pause: Callable[[], float]
    choose: random.Random = field(default_factory=random.Random)
    committed: int = 0
    rolled_back: int = 0

    async def chat_for_ever(self) -> None:
        """One chat after the other; while the database is away the person waits and tries again."""
        while True:
            chat_id, user_id = f"demo-{uuid4()}", self.choose.randint(1, 10_000)
            for turn in chat(self.choose):
                committed = False
                while not committed:
                    await asyncio.sleep(self.pause())
                    committed = await self._said(chat_id, user_id, turn)

    async def _said(self, chat_id: str, user_id: int, turn: Turn) -> bool:
        try:
            await self._say(chat_id, user_id, turn)
        except (Refused, OperationalError):
            self.rolled_back += 1
            return False
        self.committed += 1
        return True

    async def _say(self, chat_id: str, user_id: int, turn: Turn) -> None:
        async with AsyncSession(self.engine) as session, session.begin():
            await session.execute(COUNT_MESSAGE, {"chat_id": chat_id, "user_id": user_id})
            await outbox.record(
                session,
                ChatHistoryPersist(
                    user_id=user_id, conversation_id=chat_id, role=turn.role, message=turn.message
                ),
            )
            if self.choose.random() < ROLLED_BACK:
                raise Refused


async def play(rate: float, chats: int, counts: Path | None, trouble: bool = False) -> None:
    """Chat until cancelled, and leave the counts in a file twice a second.

    With `trouble`, it makes some too.
    """
    settings = load()
    outbox.start(settings)
    engine = async_engine(settings.database_url, pool_size=chats + trouble, max_overflow=0)
    try:
        async with engine.begin() as connection:
            await connection.execute(text(TABLE))
        service = Service(engine, lambda: random.expovariate(rate / chats))
        async with TaskGroup() as group:
            for _ in range(chats):
                group.create_task(service.chat_for_ever())
            if trouble:
                # Its agent is registered where it is imported: in no process without trouble.
                from streams.dev.trouble import make_trouble

                group.create_task(make_trouble(engine))
            while True:
                await asyncio.sleep(0.5)
                if counts is not None:
                    _write(counts, Played(service.committed, service.rolled_back))
    finally:
        outbox.close()
        await engine.dispose()


@click.command()
@click.option(
    "--rate",
    type=click.FloatRange(min=0.1),
    default=50.0,
    show_default=True,
    help="Messages a second.",
)
@click.option(
    "--chats", type=click.IntRange(1, 100), default=20, show_default=True, help="Chats at once."
)
@click.option("--counts", type=click.Path(path_type=Path), help="A file for the counts.")
@click.option(
    "--trouble", is_flag=True, help="Enqueue what is slow and what no worker can keep, too."
)
def main(rate: float, chats: int, counts: Path | None, trouble: bool) -> None:
    """Play real conversations through the outbox until SIGTERM."""
    with contextlib.suppress(asyncio.CancelledError, KeyboardInterrupt):
        asyncio.run(_until_told(rate, chats, counts, trouble))


async def _until_told(rate: float, chats: int, counts: Path | None, trouble: bool) -> None:
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await play(rate, chats, counts, trouble)


def _write(file: Path, played: Played) -> None:
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    draft.write_bytes(msgspec.json.encode(played))
    draft.replace(file)


if __name__ == "__main__":
    main()
