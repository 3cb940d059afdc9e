"""What a session of ours is set to, whatever server, role, pooler or environment say.

A role, a database, the server's configuration, libpq's environment and a pooler all have a say in
what a session begins with, and the last one to speak wins. So we speak last: after connecting,
with SET, which a pooler in session mode passes on (it refuses the startup parameter `options`), and
read back what arrived. One round trip; two behind a pooler.

A pooler in transaction mode gives every transaction another session: neither settings nor advisory
locks stay. Its backend's pid is not the one that the client was told, so a pooler is known; then a
second connection looks whether it gets the session that the first one has marked. Nothing but the
mark is set before that is known: what is set in a session of such a pool is met by whoever gets it
next.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg

OLDEST = 15
"""The oldest PostgreSQL that is supported."""

Settings = Mapping[str, str]
Row = tuple[Any, ...]

# What we rely on. As the server shows them: they are read back and compared.
REQUIRED: Settings = {
    "client_encoding": "UTF8",
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "standard_conforming_strings": "on",
    "array_nulls": "on",
    # The next owner of a partition has to see what the previous one committed.
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    # A row that a policy hides would count as one that does not exist: the server says so instead.
    "row_security": "off",
    # A generic plan locks every partition there is, whatever it is asked for.
    "plan_cache_mode": "force_custom_plan",
    # Compiling costs more than our statements take.
    "jit": "off",
}
# What nobody may limit but a URL and we ourselves, in milliseconds.
UNLIMITED: Settings = dict.fromkeys(
    (
        "statement_timeout",
        "lock_timeout",
        "idle_session_timeout",
    ),
    "0",
)
# What frees the locks of a client that vanished in a transaction: soon, when its machine answers
# nothing; in minutes, when something in between answers for it; sooner where somebody waits.
VANISHED: Settings = {
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "15000",
    "idle_in_transaction_session_timeout": "300000",
}
MARK = "outbox_streams.session"

_INSPECT: LiteralString = """
SELECT pg_backend_pid(), current_setting('server_encoding'),
       current_setting('session_replication_role'),
       coalesce(current_setting('outbox_streams.session', true), ''), current_database();"""
# A temporary table is looked for last: it hides none of ours. Whoever asked for commits that wait
# for standbys keeps that; one that waits for nothing would lose, in a crash, what Kafka was told is
# done.
_SET: LiteralString = """
SELECT set_config(name, value, false)
FROM (
    SELECT name, value
    FROM unnest(%(names)s::text[], %(values)s::text[]) AS wanted (name, value)
    UNION ALL
    SELECT 'search_path', CASE WHEN path IN ('', '""') THEN 'pg_temp'
                               WHEN path ~* '\\mpg_temp\\M' THEN path ELSE path || ', pg_temp' END
    FROM (SELECT coalesce(%(path)s, current_setting('search_path'))) AS given (path)
    UNION ALL
    SELECT 'synchronous_commit', 'local'
    WHERE NOT %(chosen)s AND current_setting('synchronous_commit') = 'off'
) AS wanted
WHERE pg_backend_pid() = %(pid)s
  AND coalesce(current_setting('outbox_streams.session', true), '') IN ('', %(mark)s)
  AND current_setting('server_encoding') <> 'SQL_ASCII';"""
_MARK: LiteralString = "SELECT set_config('outbox_streams.session', %(mark)s, false);"
_CHECK: LiteralString = """
SELECT name, current_setting(name)
FROM unnest(%(checked)s::text[] || 'outbox_streams.session'::text) AS asked (name);"""

Asked = tuple[LiteralString, Mapping[str, Any]]
_MARKED: Asked = ("SELECT coalesce(current_setting('outbox_streams.session', true), '')", {})
# Of a pool the session used last is given out first: nearly always the first round tells.
ROUNDS = 3

# Where a pooler was seen to keep a session for a client.
_kept: set[tuple[str, ...]] = set()


class SessionRefused(psycopg.OperationalError):
    """A session that cannot be what we rely on; the message names why, and what mends it."""


@dataclass(frozen=True, slots=True)
class Session:
    """What one session is to be set to.

    `given` is what a URL says, `ours` what this connection is for.
    """

    given: Settings = field(default_factory=dict)
    ours: Settings = field(default_factory=dict)

    def wanted(self, version: int) -> dict[str, str]:
        """All settings by name, for a server of this version (150004 is 15.4)."""
        unlimited = {**UNLIMITED, **({"transaction_timeout": "0"} if version >= 170_000 else {})}
        given = {name.lower(): value for name, value in self.given.items()}
        return {**unlimited, **VANISHED, **given, **REQUIRED, **self.ours}


def split_options(options: str) -> tuple[dict[str, str], str]:
    """(settings, rest) of libpq's `options`.

    Settings are `-c name=value` and `--name=value`; the rest is left as it was.
    """
    settings: dict[str, str] = {}
    rest: list[str] = []
    words = re.findall(r"(?:\\.|[^\s\\])+", options)
    while words:
        word = words.pop(0)
        if word == "-c" and words:
            word += words.pop(0)
        name, equals, value = re.sub(
            r"\\(.)", r"\1", word.removeprefix("-c").removeprefix("--")
        ).partition("=")
        if equals and word.startswith(("-c", "--")):
            settings[name.replace("-", "_").lower()] = value
        else:
            rest.append(word)
    return settings, " ".join(rest)


def refuse_version(version: int) -> None:
    """SessionRefused for a server that is too old."""
    if version < OLDEST * 10_000:
        raise SessionRefused(
            f"PostgreSQL {version // 10_000} is not supported: expected {OLDEST} or newer,"
            " upgrade it"
        )


def settle_sync(
    connection: psycopg.Connection[Any],
    session: Session,
    again: Callable[[], psycopg.Connection[Any]],
) -> None:
    """Make the session what we rely on; `again` opens another connection like it, which is closed.

    SessionRefused when it cannot be that.
    """

    def ask(asked: Asked, where: psycopg.Connection[Any] = connection) -> list[list[Row]]:
        cursor = psycopg.ClientCursor(where).execute(*asked)
        results = [cursor.fetchall()]
        while cursor.nextset():
            results.append(cursor.fetchall())
        return results

    before, connection.autocommit = connection.autocommit, True
    steps = _Steps(connection, session)
    steps.inspect(ask(steps.opening))
    if steps.behind_unknown_pooler:
        with again() as other:
            other.autocommit = True
            for _ in range(ROUNDS):
                steps.compare(ask(_MARKED, other), ask(_MARKED))
    if steps.pooled:
        steps.check(ask(steps.closing))
    connection.autocommit = before


async def settle(
    connection: psycopg.AsyncConnection[Any],
    session: Session,
    again: Callable[[], Awaitable[psycopg.AsyncConnection[Any]]],
) -> None:
    """Make the session what we rely on; `again` opens another connection like it, which is closed.

    SessionRefused when it cannot be that.
    """

    async def ask(
        asked: Asked, where: psycopg.AsyncConnection[Any] = connection
    ) -> list[list[Row]]:
        cursor = await psycopg.AsyncClientCursor(where).execute(*asked)
        results = [await cursor.fetchall()]
        while cursor.nextset():
            results.append(await cursor.fetchall())
        return results

    before = connection.autocommit
    await connection.set_autocommit(True)
    steps = _Steps(connection, session)
    steps.inspect(await ask(steps.opening))
    if steps.behind_unknown_pooler:
        async with await again() as other:
            await other.set_autocommit(True)
            for _ in range(ROUNDS):
                steps.compare(await ask(_MARKED, other), await ask(_MARKED))
    if steps.pooled:
        steps.check(await ask(steps.closing))
    await connection.set_autocommit(before)


class _Steps:
    """What to ask, and what the answers mean; nothing here waits for anybody."""

    def __init__(self, connection: psycopg.BaseConnection[Any], session: Session) -> None:
        info, pgconn = connection.info, connection.pgconn
        refuse_version(info.server_version)
        self._where = (info.host, str(info.port), info.dbname, info.user)
        self._mark = uuid.uuid4().hex
        wanted = session.wanted(info.server_version)
        path = wanted.pop("search_path", None)
        self._wanted = wanted
        self._parameters = {
            "names": list(wanted),
            "values": list(wanted.values()),
            "checked": list(REQUIRED),
            "path": path,
            "chosen": "synchronous_commit" in wanted,
            "pid": pgconn.backend_pid,
            "mark": self._mark,
        }
        self.pooled = False

    @property
    def opening(self) -> Asked:
        """What is asked first: nothing but the mark is set when a pooler answers."""
        return _INSPECT + _SET + _MARK + _CHECK, self._parameters

    @property
    def closing(self) -> Asked:
        """What is asked of a pooler that keeps a session for its client."""
        return _SET + _CHECK, self._parameters

    @property
    def behind_unknown_pooler(self) -> bool:
        """Whether it has to be found out if the pooler keeps a session for its client."""
        return self.pooled and self._where not in _kept

    def inspect(self, results: list[list[Row]]) -> None:
        """The answer to `opening`."""
        [(pid, encoding, replication_role, mark, database)] = results[0]
        if encoding == "SQL_ASCII":
            raise SessionRefused(
                f"database {database} has the encoding SQL_ASCII, in which text is bytes of any"
                " kind: make one with CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0,"
                " and restore a dump into it"
            )
        if replication_role != "origin":
            raise SessionRefused(
                f"session_replication_role is {replication_role}, so triggers do not fire:"
                " run ALTER ROLE ... RESET session_replication_role, or the same for the database"
            )
        if mark:
            raise _shared()
        self.pooled = pid != self._parameters["pid"]
        if self.pooled:
            self._parameters["pid"] = pid
        else:
            self.check(results)

    def compare(self, other: list[list[Row]], ours: list[list[Row]]) -> None:
        """The marks that two connections find in their sessions."""
        if other[-1][0][0] == self._mark or ours[-1][0][0] != self._mark:
            raise _shared()

    def check(self, results: list[list[Row]]) -> None:
        """Whether what was set is there."""
        there: dict[str, str] = dict(results[-1])
        if there.pop(MARK) != self._mark:
            raise _shared()
        for name, value in there.items():
            if value.lower() != self._wanted[name].lower():
                raise SessionRefused(
                    f"{name} is {value!r} after it was set to {self._wanted[name]!r}: a pooler does"
                    " not pass it on"
                )
        if self.pooled:
            _kept.add(self._where)


def _shared() -> SessionRefused:
    return SessionRefused(
        "a pooler gives this session to others too: connect directly, or set pool_mode = session"
        " and server_reset_query = DISCARD ALL (PgBouncer)"
    )
