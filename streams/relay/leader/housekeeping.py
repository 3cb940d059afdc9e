"""What a leader keeps small beside publishing, on a connection of its own.

`outbox_open` first: a row comes and goes with every message that fails, and what is gone has to be
swept before probes wade through it; the server's own round comes once a minute at best. Then
retention, which takes old messages away.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import orjson
import psycopg

from streams.archive.write import Writer, writer
from streams.database import connect, query
from streams.database.refusals import refusal
from streams.database.retention import (
    DETACH_TIMEOUT,
    Busy,
    ClocksDiffer,
    NotAllowed,
    Proof,
    Retention,
    Step,
    holding,
    periods,
)
from streams.errors import StreamsError
from streams.settings import Settings

logger = logging.getLogger("streams.relay")

ROUND_SECONDS = 10.0
RETENTION_SECONDS = 60.0
EXPIRE_SECONDS = 3600.0
AGAIN_SECONDS = 300.0


class Housekeeping:
    """Runs until cancelled; an outage costs a round, nothing else."""

    def __init__(
        self, settings: Settings, topics: Iterable[str], envelopes: Iterable[str] = ()
    ) -> None:
        self._settings, self._periods = settings, periods(settings, topics, envelopes)
        self._retained_at, self._expired_at = -RETENTION_SECONDS, -EXPIRE_SECONDS
        self._proofs: dict[int, Proof] = {}
        self._archive: Writer | None = None
        self._failed: list[str] = []  # of the last expiry

    async def run(self) -> None:
        """One round after another."""
        while True:
            try:
                async with await connect(
                    self._settings.database_url,
                    connect_timeout=self._settings.database.connect_timeout,
                    application_name="outbox-streams relay housekeeping",
                    session={"lock_timeout": DETACH_TIMEOUT},
                ) as connection:
                    while True:
                        await self.round(connection)
                        await asyncio.sleep(ROUND_SECONDS)
            except (psycopg.Error, OSError) as error:
                _interrupted(error)
            await asyncio.sleep(ROUND_SECONDS)

    async def round(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Look once, and clean up what needs it."""
        try:
            row = await (await connection.execute(query("open_churns"))).fetchone()
            if row and row[0]:
                await connection.execute(query("vacuum_open"))
        except psycopg.Error as error:
            if connection.closed:
                raise
            _interrupted(error)
        if time.monotonic() - self._retained_at >= RETENTION_SECONDS:
            self._retained_at = time.monotonic()
            await self._retain(connection)

    async def _retain(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Take away what is old, and write down what holds that up."""
        if self._periods.endless:
            return
        waits: list[str] = []
        try:
            async with holding(connection):
                kept = self._periods
                try:
                    self._archive = self._archive or await writer(self._settings)
                except StreamsError as reason:  # nothing goes that is not archived
                    waits.append(f"retention: {reason}")
                    kept = replace(kept, messages=None)
                work = Retention(connection, kept, proofs=self._proofs, archive=self._archive)
                if time.monotonic() - self._expired_at >= EXPIRE_SECONDS:
                    self._expired_at = time.monotonic()
                    self._failed = [f"retention: {failed}" for failed in await work.expire()]
                    if self._failed:  # somebody may have been in its way: no hour of rest for that
                        self._expired_at = time.monotonic() - EXPIRE_SECONDS + AGAIN_SECONDS
                waits += self._failed
                async for step in work.steps():
                    waits += self._told(step)
                    if step.act != "wait":  # each may take long
                        await self._save(connection, None)
        except NotAllowed as reason:
            work = Retention(
                connection, self._periods, dry=True, proofs=self._proofs, unarchived=True
            )
            ready = any([step.act != "wait" async for step in work.steps()])
            if ready or await work.overdue():
                waits.append(f"retention: {reason}")
        except psycopg.Error as error:
            if connection.closed:
                raise
            waits.append(f"retention: {refusal(error)}")
            _interrupted(error)
        except ClocksDiffer as reason:
            waits.append(f"retention: {reason}")
        except Busy as reason:
            # Another relay, or a person, who says what holds it up. It is not done by that: one
            # that was paused in the middle of it would look like one that does it.
            logger.info("retention left to another", extra={"reason": str(reason)})
            return
        await self._save(connection, orjson.dumps(waits).decode())

    async def _save(self, connection: psycopg.AsyncConnection[Any], waits: str | None) -> None:
        """Write down that retention is being done, and what holds it up, if that is known anew."""
        given = {"relay": self._settings.relay.name, "waits": waits}
        await connection.execute(query("save_retention"), given)

    def _told(self, step: Step) -> list[str]:
        about = {"first": step.first, "last": step.last}
        if step.act == "empty":
            logger.info("range emptied", extra={**about, "bytes": step.bytes, "left": step.left})
        elif step.act == "drop":
            logger.info("partitions dropped", extra=about)
        elif step.reason is not None:
            return [f"retention of messages {step.first} to {step.last} waits: {step.reason}"]
        return []


def _interrupted(error: Exception) -> None:
    extra = {"error": type(error).__name__, "sqlstate": getattr(error, "sqlstate", None)}
    logger.warning("housekeeping interrupted", extra=extra)
