"""What an error means: wait and try the same run again, or find the guilty message and set it aside."""

from __future__ import annotations

import random
from collections.abc import Sequence
from enum import Enum, auto
from typing import Any

import psycopg
from sqlalchemy.exc import DBAPIError

from streams.errors import MessageError

MOST_DELAY = 32.0  # seconds

# An outage, a failover (25006), a lock that is taken, a forgotten grant, a full disk: never the message's fault.
OUTAGE_CLASSES = ("08", "25006", "40", "42501", "53", "55", "57P", "58")
# Time and memory may be the message's fault after all.
NOT_OUTAGES = ("53200",)


class Verdict(Enum):
    """What to do with a run whose transaction failed."""

    WAIT = auto()
    ISOLATE = auto()


def judge(error: BaseException, connection_lost: bool) -> Verdict:
    """The verdict on an error of a run; a lost connection is judged by its state, not by the exception's class.

    Too many bind parameters raise OperationalError as well, and waiting would not help them.
    """
    if connection_lost:
        return Verdict.WAIT
    state = sqlstate(error)
    if state is not None and state.startswith(OUTAGE_CLASSES) and state not in NOT_OUTAGES:
        return Verdict.WAIT
    return Verdict.ISOLATE


def delay(attempt: int) -> float:
    """Seconds to wait before attempt number *attempt* (1 is the first retry): 1, 2, 4, ... 32."""
    return min(MOST_DELAY, 2.0 ** (min(attempt, 10) - 1))


def jittered(seconds: float) -> float:
    """The same, spread by a quarter either way, so that what failed together does not return together."""
    return seconds * random.uniform(0.75, 1.25)


def sqlstate(error: BaseException) -> str | None:
    """The five characters PostgreSQL gave, if it was PostgreSQL."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return cause.sqlstate if isinstance(cause, psycopg.Error) else None


def describe(error: BaseException) -> tuple[str, str]:
    """(code, reason) for the state row, without a word of the message: server details can quote the row."""
    if isinstance(error, MessageError):
        return error.code, str(error)[:2000]
    if isinstance(error, TimeoutError):
        return "timeout", "the handler took longer than worker.handler_timeout"
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, psycopg.Error) and cause.sqlstate:
        return cause.sqlstate, _server_reason(cause)
    name = type(cause).__name__
    return name, f"the handler raised {name}"


def _server_reason(error: psycopg.Error) -> str:
    diag = error.diag
    named: Sequence[tuple[str, Any]] = (
        ("table", diag.table_name),
        ("column", diag.column_name),
        ("constraint", diag.constraint_name),
    )
    where = ", ".join(f"{what} {name}" for what, name in named if name)
    kind = type(error).__name__
    return f"{kind} ({error.sqlstate})" + (f": {where}" if where else "")
