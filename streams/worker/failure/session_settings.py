"""What a handler changes in its session: put back, and kept from every later transaction.

SET LOCAL search_path, ROLE, ...; set_config(..., true)    put back after the call, before anything
                                                           of ours is sent
SET, RESET, LISTEN, PREPARE, CREATE TEMP TABLE, ...        the same, and the pooled connection is
                                                           thrown away afterwards
CREATE TEMP TABLE (ON COMMIT DROP too), DECLARE CURSOR     dropped and closed after the call: the
                                                           next one may do the same
a function of the database's that does it                  the same, where the server tells its
                                                           client; in pieces always
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from enum import Enum, IntEnum
from functools import lru_cache
from typing import Any

import psycopg

# In this order: a session's user decides its role, and both what may be set.
NAMES = (
    "session_authorization", "role", "search_path", "application_name",
    "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout",
    "transaction_timeout", "session_replication_role", "row_security", "DateStyle",
    "IntervalStyle", "TimeZone", "client_encoding", "standard_conforming_strings",
    "plan_cache_mode", "synchronous_commit",
)  # fmt: skip
# Those whose values the server tells by itself, search_path from PostgreSQL 18 on.
REPORTED = tuple(
    name.encode()
    for name in ("session_authorization", "search_path", "DateStyle", "TimeZone", "client_encoding")
)


class Change(IntEnum):
    """For how long a statement changes the session it runs in."""

    NONE = 0
    TRANSACTION = 1
    SESSION = 2


class Left(Enum):
    """What a call leaves in its transaction that another call would run into, and what ends it."""

    CURSORS = "CLOSE ALL"
    TABLES = "DISCARD TEMP"


class Session:
    """A transaction's session settings, as they were before the first handler was called."""

    def __init__(self, driver: psycopg.AsyncConnection[Any]) -> None:
        self._driver = driver
        self._settings: Sequence[tuple[str, str]] | None = None
        self._own: dict[str, str] = {}  # settings of the handlers' own

    async def remember(self, names: Collection[str] = ()) -> None:
        """Read the settings, once: before what may change them is sent. And these of its own."""
        if self._settings is None:
            async with psycopg.AsyncCursor(self._driver) as cursor:
                await cursor.execute(_READ, {"names": list(NAMES)})
                self._settings = await cursor.fetchall()
        if new := [name for name in names if name not in self._own]:
            async with psycopg.AsyncCursor(self._driver) as cursor:
                await cursor.execute(_READ_OWN, {"names": new})
                self._own |= dict(await cursor.fetchall())

    async def clear(self, leaves: Collection[Left]) -> None:
        """End what a call has left: what is open first, for it may need what is dropped then."""
        async with psycopg.AsyncCursor(self._driver) as cursor:
            for each in Left:
                if each in leaves:
                    await cursor.execute(each.value, prepare=False)

    async def restore(self) -> bool:
        """Set back, for this transaction, what is another one now; whether anything was."""
        if not self._settings:
            return False
        names, values = zip(*self._settings, *self._own.items(), strict=True)
        async with psycopg.AsyncClientCursor(self._driver) as cursor:
            # First alone: what a handler allowed itself may be too little for the next one. To its
            # value, not TO DEFAULT: that is what the session began with, before it was made ours.
            allowed = dict(self._settings)["statement_timeout"]
            await cursor.execute(_ALLOW, {"allowed": allowed}, prepare=False)
            [(before,)] = await cursor.fetchall()
        async with psycopg.AsyncCursor(self._driver) as cursor:
            await cursor.execute(_RESTORE, {"names": list(names), "values": list(values)})
            return before != allowed or any(changed for (changed,) in await cursor.fetchall())

    def reported(self) -> list[bytes | None]:
        """What the server has told of the settings, without asking it."""
        status = self._driver.pgconn.parameter_status
        return [status(name) for name in REPORTED]


_READ = """
SELECT name, pg_catalog.current_setting(name, true)
FROM pg_catalog.unnest(%(names)s::pg_catalog.text[]) WITH ORDINALITY AS given (name, position)
WHERE pg_catalog.current_setting(name, true) IS NOT NULL
ORDER BY position
"""
# One that nobody set has no value: it is set to none, as a setting of one's own is after its
# transaction.  What is no setting at all is the handler's error.
_READ_OWN = """
SELECT name, coalesce(pg_catalog.current_setting(name, true), '')
FROM pg_catalog.unnest(%(names)s::pg_catalog.text[]) AS given (name)
WHERE pg_catalog.current_setting(name, true) IS NOT NULL OR name LIKE '%%.%%'
"""
_ALLOW = """
SELECT pg_catalog.current_setting('statement_timeout');
SET LOCAL statement_timeout = %(allowed)s;
"""
# Only what is different: to set some needs a right, even to the value that they have. A temporary
# table of a handler's that is called as one of ours comes last.
_RESTORE = """
SELECT pg_catalog.set_config(name, value, true) <> '' AND name <> 'search_path'
FROM ROWS FROM (pg_catalog.unnest(%(names)s::pg_catalog.text[]),
                pg_catalog.unnest(%(values)s::pg_catalog.text[]))
         AS given (name, before),
     LATERAL (SELECT CASE WHEN name <> 'search_path' OR before ~ 'pg_temp' THEN before
                          WHEN before = '' THEN 'pg_temp'
                          ELSE before || ', pg_temp' END) AS wanted (value)
WHERE pg_catalog.current_setting(name, true) IS DISTINCT FROM value
"""


@lru_cache(maxsize=256)
def left(statement: str) -> frozenset[Left]:
    """What this text leaves in its transaction, as far as a text says that."""
    if _LEAVES.search(statement) is None:
        return frozenset()
    plain = unquoted(statement)
    text = statement if is_block(plain) else plain
    tables, cursors = _TEMPORARY.search(text), _CURSOR.search(plain)
    return frozenset({Left.TABLES} if tables else ()) | ({Left.CURSORS} if cursors else set())


@lru_cache(maxsize=256)
def named(statement: str) -> frozenset[str]:
    """The settings that this text changes and that are none of ours, as far as it names them."""
    names = {*_SETS.findall(unquoted(statement)), *_SET_CONFIG_NAME.findall(statement)}
    return frozenset(name.lower() for name in names) - _OURS


def is_block(plain: str) -> bool:
    """Whether this text, without what is quoted in it, runs a block of code."""
    return any(_BLOCK.match(part) is not None for part in plain.split(";"))


@lru_cache(maxsize=256)
def change(statement: str) -> Change:
    """For how long this text changes its session, as far as a text says that."""
    if _HINTS.search(statement) is None:
        return Change.NONE
    kind = Change.NONE
    for part in unquoted(statement).split(";"):
        if _SESSION.search(part) is not None or (
            _BLOCK.match(part) is not None and _INSIDE.search(statement)
        ):
            return Change.SESSION
        if (calls := len(_SET_CONFIG.findall(part))) or _LOCAL.match(part) is not None:
            kind = Change.TRANSACTION
            if len(_SET_CONFIG_LOCAL.findall(part)) < calls:
                return Change.SESSION
    return kind


def unquoted(statement: str) -> str:
    """The text without strings, quoted names and comments: no word in them means anything."""
    return _QUOTED.sub(" ", statement)


_QUOTED = re.compile(
    r"""\b[eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*" | \$(\w*)\$.*?\$\1\$
        | --[^\n]* | /\*.*?\*/""",
    re.VERBOSE | re.DOTALL,
)
_HINTS = re.compile(
    r"""\b(?:set(?:_config)?|reset|discard|listen|unlisten|load|prepare|deallocate|temp|temporary|hold
        |pg_(?:try_)?advisory_lock(?:_shared)?)\b""",
    re.VERBOSE | re.IGNORECASE,
)
_SESSION = re.compile(
    r"""^\s*(?:set\s+(?!local\b|constraints\b|transaction\b)
            | (?:reset|discard|listen|unlisten|load|prepare|deallocate)\b
            | create\s+(?:(?:local|global)\s+)?temp(?:orary)?\b(?!.*\bon\s+commit\s+drop\b)
            | declare\b.*\bwith\s+hold\b)
        | \binto\s+(?:(?:local|global)\s+)?temp(?:orary)?\b
        | \bpg_(?:try_)?advisory_lock(?:_shared)?\b""",
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
_LEAVES = re.compile(r"\b(?:temp|temporary|cursor)\b", re.IGNORECASE)
_TEMPORARY = re.compile(
    r"""\bcreate\s+(?:(?:local|global)\s+)?temp(?:orary)?\b
        | \binto\s+(?:(?:local|global)\s+)?temp(?:orary)?\b""",
    re.VERBOSE | re.IGNORECASE,
)
_CURSOR = re.compile(r"\bdeclare\b.*\bcursor\b", re.IGNORECASE | re.DOTALL)
_SETS = re.compile(r"\bset\s+(?:(?:session|local)\s+)?([a-z_][\w.]*)\s*(?:=|to\b)", re.IGNORECASE)
_SET_CONFIG_NAME = re.compile(r"\bset_config\s*\(\s*'([\w.]+)'", re.IGNORECASE)
_OURS = frozenset(name.lower() for name in NAMES)
_LOCAL = re.compile(r"\s*set\s+local\b", re.IGNORECASE)
_BLOCK = re.compile(r"\s*do\b", re.IGNORECASE)
_INSIDE = re.compile(
    r"\b(?:set_config|listen|temp|temporary|set\s+(?:local\s+)?\w+\s*(?:=|to\b))", re.IGNORECASE
)
_SET_CONFIG = re.compile(r"\bset_config\s*\(", re.IGNORECASE)
_SET_CONFIG_LOCAL = re.compile(
    r"\bset_config\s*\((?:[^()]|\([^()]*\))*,\s*true\s*\)", re.IGNORECASE
)
