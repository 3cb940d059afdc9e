"""The demo's numbers: what its process says it rolled back, and how far its messages have come."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from streams.database import connect
from streams.dev.counters import Counters
from streams.dev.screen import Screen

INTERVAL = 0.5


class Played(msgspec.Struct, frozen=True):
    """What the demo process has done since its start."""

    committed: int = 0
    rolled_back: int = 0


def played(file: Path) -> Played:
    """The demo's own count; zeros until it has written one."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Played)
    except (OSError, msgspec.DecodeError):
        return Played()


async def begun(url: str) -> Counters:
    """Counters of what is written from now on."""
    counters = Counters()
    async with await connect(url) as connection:
        await counters.begin(connection)
    return counters


async def keep_score(url: str, counters: Counters, file: Path, screen: Screen) -> None:
    """Show the numbers until cancelled; while the database is away the last ones stay."""
    while True:
        try:
            async with await connect(url) as connection:
                await _watch(counters, connection, file, screen)
        except psycopg.Error:
            await asyncio.sleep(1.0)


async def _watch(
    counters: Counters, connection: psycopg.AsyncConnection[Any], file: Path, screen: Screen
) -> None:
    while True:
        screen.counts(await counters.step(connection), played(file).rolled_back)
        await asyncio.sleep(INTERVAL)
