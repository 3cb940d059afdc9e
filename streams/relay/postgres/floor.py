"""The floor: every outbox row with an id at or below it is published or was rolled back.

This is policy only; `wal_floor`, `source.poll` and `source.shards` apply it.

Ids are drawn before rows commit, so the newest id proves nothing. A sample is
the newest id drawn and the transactions that may still write an id drawn before: those which hold
the lock that an INSERT takes before it draws. When they have ended, whatever they committed lies
before the end of the WAL of that moment; once the relay is past it, so are they.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from typing import Any, Protocol

import psycopg


class Floor(Protocol):
    """How a mode knows its floor."""

    @property
    def value(self) -> int:
        """The floor as far as this leader has proved it."""

    @property
    def lsn(self) -> str | None:
        """The confirmed log position, where there is one."""

    def reset(self) -> None:
        """The connection is new: forget what the old one saw."""

    async def look(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Look at the writers once."""


@dataclass(frozen=True, slots=True)
class Sample:
    """`newest` was drawn, `writers` may still write it or an older id.

    `lsn` is set when the last of them has ended.
    """

    newest: int
    writers: frozenset[str]
    lsn: int | None = None


def settle(sample: Sample, writers: Set[str], insert_lsn: int) -> Sample:
    """The sample seen later: these are writing now.

    WAL ended at `insert_lsn` after they were looked up.
    """
    left = sample.writers & writers
    lsn = insert_lsn if sample.lsn is None and not left else sample.lsn
    return replace(sample, writers=left, lsn=lsn)


def reached(sample: Sample, confirmed: int | None) -> bool:
    """Whether the floor may rise to the sample.

    It may when the relay has published everything up to `confirmed`.
    """
    return sample.lsn is not None and confirmed is not None and confirmed >= sample.lsn
