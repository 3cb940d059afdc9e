"""What PostgreSQL says no with, told to a person: one line without a word of what is in a row.

A trigger, a constraint or a type of the user's own may quote a message in what it says; what speaks
of the server, the session, a right or the name of a thing cannot.
"""

from __future__ import annotations

import psycopg
from sqlalchemy.exc import DBAPIError

from streams.errors import ServiceUnreachable, StreamsError, UsageError

# Classes of SQLSTATEs whose words speak of no row: connection, transaction, login, database,
# schema, crosswise, right or name, room, limits, in use, ended by somebody, the system itself.
SPOKEN = ("08", "25", "28", "3D", "3F", "40", "42", "53", "54", "55", "57", "58")
# Those of what goes by: with another server, another moment, more room.
PASSING = ("08", "25006", "40", "53", "55", "57", "58")
GONE = ("08", "25P03", "57P")
IN_THE_WAY = ("40P01", "55P03", "40001")
"""SQLSTATEs of what another try may not meet: a deadlock, a lock not had in time, rows that another
transaction has changed."""


def sqlstate(error: BaseException) -> str:
    """The server's code; '' when it never answered."""
    original = error.orig if isinstance(error, DBAPIError) else error
    return getattr(original, "sqlstate", None) or ""


def lasting(error: BaseException) -> bool:
    """Whether another try meets it again: no outage, no full server, nobody in the way.

    A statement that took too long is one that takes too long.
    """
    state = sqlstate(error)
    return bool(state) and (state == "57014" or not state.startswith(PASSING))


def words(error: BaseException) -> str:
    """The first line of what the server or the client said, or, where it may quote a row, names."""
    original = error.orig if isinstance(error, DBAPIError) else error
    state = sqlstate(error)
    if _unreadable(error) or (state and not state.startswith(SPOKEN)):
        return names(error)
    return (str(original).strip().splitlines() or [type(original).__name__])[0]


def names(error: BaseException) -> str:
    """Class, SQLSTATE, and which of the database's own things it is about."""
    original = error.orig if isinstance(error, DBAPIError) else error
    diag = getattr(original, "diag", None)
    about = [
        f"{kind} {name}"
        for kind in ("table", "column", "constraint")
        if (name := getattr(diag, f"{kind}_name", None))
    ]
    if isinstance(original, psycopg.errors.DependentObjectsStillExist):
        about += (original.diag.message_detail or "").splitlines()
    return ", ".join([f"{type(original).__name__} (SQLSTATE {sqlstate(error) or '-'})", *about])


def refusal(error: BaseException) -> str:
    """Why something of ours was not done, as `names` has it."""
    return f"PostgreSQL refuses it: {names(error)}"


def told(error: BaseException, where: str, done: str = "", *, to: str = "") -> StreamsError:
    """The error for whoever asked the server at `where` `to` do something.

    `done` says what had been done before it.

    ServiceUnreachable when it went away, is full or busy, UsageError when it will say no again.
    """
    state, said = sqlstate(error), words(error) + (f": {done}" if done else "")
    if _unreadable(error):
        return UsageError(f"PostgreSQL at {where}: the driver cannot convert a value: {said}")
    if not state or state.startswith(GONE):
        return ServiceUnreachable(f"PostgreSQL at {where} went away: {said}")
    if state.startswith(PASSING):
        return ServiceUnreachable(f"PostgreSQL at {where} cannot do it now: {said}")
    return UsageError(f"PostgreSQL at {where} {f'refuses to {to}' if to else 'refuses'}: {said}")


def _unreadable(error: BaseException) -> bool:
    """Whether the driver does not take a value, which its words quote; the server said nothing."""
    original = error.orig if isinstance(error, DBAPIError) else error
    return isinstance(original, psycopg.DataError) and not sqlstate(error)
