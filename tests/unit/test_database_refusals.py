"""What PostgreSQL says no with, as a person reads it."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors
from sqlalchemy.exc import OperationalError

from streams.database.refusals import refusal, told, words
from streams.errors import ServiceUnreachable, StreamsError, UsageError

CANARY = "canary-text"


@pytest.mark.parametrize(
    "error",
    [
        errors.RaiseException(f"a trigger says {CANARY}"),
        errors.InvalidTextRepresentation(f'invalid input syntax for type integer: "{CANARY}"'),
        errors.UniqueViolation(f"duplicate key: {CANARY}"),
        errors.InternalError_(f"unexpected: {CANARY}"),
    ],
)
def test_what_may_quote_a_row_is_named_and_not_repeated(error: psycopg.Error) -> None:
    name = f"{type(error).__name__} (SQLSTATE {error.sqlstate})"
    wrapped = OperationalError("SELECT", {}, error)
    assert words(error) == words(wrapped) == name
    assert refusal(error) == f"PostgreSQL refuses it: {name}"
    assert CANARY not in str(told(error, "there")) + str(told(wrapped, "there"))


@pytest.mark.parametrize(
    ("error", "kind", "line"),
    [
        (
            psycopg.OperationalError("connection failed:\nno"),
            ServiceUnreachable,
            "went away: connection failed:",
        ),
        (errors.AdminShutdown("ended"), ServiceUnreachable, "went away: ended"),
        (
            errors.IdleInTransactionSessionTimeout("too idle"),
            ServiceUnreachable,
            "went away: too idle",
        ),
        (errors.DiskFull("no room"), ServiceUnreachable, "cannot do it now: no room"),
        (errors.LockNotAvailable("locked"), ServiceUnreachable, "cannot do it now: locked"),
        (errors.ReadOnlySqlTransaction("r/o"), ServiceUnreachable, "cannot do it now: r/o"),
        (errors.InsufficientPrivilege("not yours"), UsageError, "refuses: not yours"),
        (errors.UndefinedTable("no table"), UsageError, "refuses: no table"),
        (
            errors.CheckViolation(CANARY),
            UsageError,
            "refuses: CheckViolation (SQLSTATE 23514)",
        ),
        (psycopg.OperationalError(), ServiceUnreachable, "went away: OperationalError"),
    ],
)
def test_whether_to_try_again_or_to_mend_something(
    error: psycopg.Error, kind: type[StreamsError], line: str
) -> None:
    said = told(error, "postgresql://there")
    assert (type(said), str(said)) == (kind, f"PostgreSQL at postgresql://there {line}")
    done = told(error, "postgresql://there", "nothing was restored")
    assert str(done) == f"{said}: nothing was restored"


def test_a_value_that_the_driver_cannot_convert_is_not_quoted_and_no_outage() -> None:
    error = psycopg.DataError(f"timestamp too large (after year 10K): '{CANARY}'")
    said = told(error, "there")
    assert isinstance(said, UsageError)
    assert str(said) == (
        "PostgreSQL at there: the driver cannot convert a value: DataError (SQLSTATE -)"
    )
    assert CANARY not in refusal(error) + words(OperationalError("SELECT", {}, error))
