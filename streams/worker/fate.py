"""What an error means: for the run (wait, or find the guilty message) and for a guilty message (retry, or dead)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from enum import Enum, auto
from typing import Any

import psycopg
from sqlalchemy.exc import DBAPIError

from streams.errors import MessageError, Reject, Retry
from streams.registry import Agent

# An outage, a failover (25006), a lock that is taken, a forgotten grant, a full disk: never the message's fault.
OUTAGE_CLASSES = ("08", "25006", "40", "42501", "53", "55", "57P", "58")
# Time and memory may be the message's fault after all: tried as they are a few times, then the guilty one is charged.
COSTLY = ("57014", "25P03", "53200")
# What time cannot heal: data out of range or of the wrong form, a column's own constraints, limits of the server.
PERMANENT_CLASSES = ("22", "23502", "23514", "54")


class HandlerTimeout(Exception):
    """A handler took longer than worker.handler_timeout."""


class Costly(Exception):
    """One message, tried alone, took its time or its connection: if it was no outage, it is condemned."""

    def __init__(self, outbox_id: int, error: Exception) -> None:
        super().__init__(str(error))
        self.outbox_id, self.error = outbox_id, error


class HandlerBroken(Exception):
    """Every message of a biz_type fails because of its statement: a bug or a missing column, not the messages."""


class Verdict(Enum):
    """What to do with a run whose transaction failed."""

    WAIT = auto()  # an outage: the same run again, nothing counted
    ISOLATE = auto()  # find the guilty messages
    COSTLY = auto()  # the same after some tries, one message at a time


def judge(error: BaseException, connection_lost: bool) -> Verdict:
    """The verdict on an error of a run; a lost connection is judged by its state, not by the exception's class.

    Too many bind parameters raise OperationalError as well, and waiting would not help them.
    """
    state = sqlstate(error)
    if isinstance(error, HandlerTimeout) or state in COSTLY:
        return Verdict.COSTLY
    if connection_lost or isinstance(error, HandlerBroken):
        return Verdict.WAIT
    if state is not None and state.startswith(OUTAGE_CLASSES):
        return Verdict.WAIT
    return Verdict.ISOLATE


def decide_fate(error: BaseException, attempts: int, agent: Agent) -> tuple[str, float | None]:
    """(status, seconds until the next attempt) of a message that failed for the *attempts*-th time."""
    if attempts >= agent.attempts or permanent(error):
        return "dead", None
    if isinstance(error, Retry) and error.after is not None:
        return "retrying", max(0.0, error.after)
    return "retrying", jittered(delay(attempts, agent.first_delay, agent.most_delay))


def permanent(error: BaseException) -> bool:
    """Whether trying the same message again cannot help."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, psycopg.Error):
        # Without a SQLSTATE the client itself refused to bind the value.
        return isinstance(cause, psycopg.DataError) if cause.sqlstate is None else _permanent_state(cause.sqlstate)
    return isinstance(cause, Reject | UnicodeError)


def delay(attempt: int, first: float = 1.0, most: float = 32.0) -> float:
    """Seconds to wait after attempt number *attempt* failed: first, twice that, ... at most `most`."""
    return float(min(most, first * 2.0 ** (min(attempt, 32) - 1)))


def jittered(seconds: float) -> float:
    """The same, spread by a quarter either way, so that what failed together does not return together."""
    return seconds * random.uniform(0.75, 1.25)


def sqlstate(error: BaseException) -> str | None:
    """The five characters PostgreSQL gave, if it was PostgreSQL."""
    if isinstance(error, Costly):
        error = error.error
    cause = error.orig if isinstance(error, DBAPIError) else error
    return cause.sqlstate if isinstance(cause, psycopg.Error) else None


def describe(error: BaseException) -> tuple[str, str]:
    """(code, reason) for the state row, without a word of the message: server details can quote the row."""
    if isinstance(error, Costly):
        error = error.error
    if isinstance(error, MessageError):
        return storable(error.code)[:100], storable(str(error))[:2000]
    if isinstance(error, HandlerTimeout):
        return "timeout", "the handler took longer than worker.handler_timeout"
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, psycopg.Error) and cause.sqlstate:
        return cause.sqlstate, _server_reason(cause)
    name = type(cause).__name__
    return name, f"the handler raised {name}"


def storable(text: str) -> str:
    """The text without what PostgreSQL refuses: a reason must never fail in its turn."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def _permanent_state(state: str) -> bool:
    return state.startswith(PERMANENT_CLASSES)


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
