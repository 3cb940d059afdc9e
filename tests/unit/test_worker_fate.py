"""What an error means, decided by SQLSTATE and by the state of the connection."""

from __future__ import annotations

import re

import psycopg
import pytest
from psycopg import errors
from psycopg.errors import QueryCanceled
from sqlalchemy.exc import DBAPIError

from streams.errors import Reject, Retry
from streams.registry import discover
from streams.worker.failure.classify import (
    HandlerMisuse,
    HandlerTimeout,
    LetOut,
    MessageExhausted,
    SwallowedError,
    Verdict,
    delay,
    describe,
    fate_of,
    jittered,
    meets_everybody,
    permanent,
    verdict_on,
)

AGENT = discover().agents["chat_history_persist"]
OUTAGES = [
    "08006",
    "25006",
    "40001",
    "40P01",
    "42501",
    "53100",
    "53300",
    "55P03",
    "57P01",
    "57P03",
    "58030",
]
GUILTY = ["22P05", "23505", "23514", "42703", "42P01", "54000", "P0001"]
RESOURCE_STATES = ["53200", "57014", "25P03"]


@pytest.mark.parametrize("state", OUTAGES)
def test_an_outage_waits(state: str) -> None:
    assert verdict_on(errors.lookup(state)("x"), connection_lost=False) is Verdict.WAIT
    assert (
        verdict_on(DBAPIError("x", {}, errors.lookup(state)("x")), connection_lost=False)
        is Verdict.WAIT
    )


@pytest.mark.parametrize("state", GUILTY)
def test_a_fault_of_the_message_is_isolated(state: str) -> None:
    try:
        error = errors.lookup(state)("x")
    except KeyError:
        pytest.fail(f"psycopg does not know {state}")
    assert verdict_on(error, connection_lost=False) is Verdict.ISOLATE


@pytest.mark.parametrize("state", RESOURCE_STATES)
@pytest.mark.parametrize("lost", [False, True])
def test_time_and_memory_are_tried_again_before_anyone_is_charged(state: str, lost: bool) -> None:
    assert verdict_on(errors.lookup(state)("x"), connection_lost=lost) is Verdict.SLOW
    assert verdict_on(HandlerTimeout(), connection_lost=lost) is Verdict.SLOW


@pytest.mark.parametrize(
    ("error", "attempts", "expected"),
    [
        (ValueError("x"), 1, "retrying"),
        (ValueError("x"), 20, "dead"),
        (Reject("no"), 1, "dead"),
        (Retry(after=7.0), 1, "retrying"),
        (errors.lookup("22003")("x"), 1, "dead"),
        (errors.lookup("23514")("x"), 1, "dead"),
        (errors.lookup("23503")("x"), 1, "retrying"),
        (errors.lookup("23503")("x"), 20, "dead"),
        (psycopg.DataError("NUL"), 1, "dead"),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "x"), 1, "dead"),
    ],
)
def test_the_fate_of_a_guilty_message(error: Exception, attempts: int, expected: str) -> None:
    status, wait = fate_of(error, attempts, AGENT)
    assert status == expected
    assert (wait is None) == (status == "dead")


def test_retry_after_is_taken_as_it_is() -> None:
    assert fate_of(Retry(after=7.0), 1, AGENT) == ("retrying", 7.0)


def test_a_lost_connection_is_judged_by_its_state_not_by_the_class() -> None:
    assert (
        verdict_on(psycopg.OperationalError("the connection is lost"), connection_lost=True)
        is Verdict.WAIT
    )
    # Too many bind parameters raise OperationalError too, with the connection intact.
    assert (
        verdict_on(psycopg.OperationalError("number of parameters"), connection_lost=False)
        is Verdict.ISOLATE
    )


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError("x"), TimeoutError(), Reject("no"), Retry()]
)
def test_an_error_that_a_handler_raises_is_isolated(error: Exception) -> None:
    assert verdict_on(error, connection_lost=False) is Verdict.ISOLATE


def test_delays_double_up_to_half_a_minute_with_jitter() -> None:
    assert [delay(attempt) for attempt in (1, 2, 3, 4, 5, 6, 7, 20)] == [1, 2, 4, 8, 16, 32, 32, 32]
    assert all(0.75 * 8 <= jittered(8) <= 1.25 * 8 for _ in range(100))


def test_a_description_holds_no_text_of_the_message() -> None:
    code, reason = describe(ValueError("canary"))
    assert (code, reason) == (
        "ValueError",
        "the handler raised ValueError",
    )  # never raised: it comes from nowhere
    assert describe(Reject("a\0b \ud800")) == ("rejected", "a\N{REPLACEMENT CHARACTER}b ?")
    assert describe(Reject("the chat is closed", code="closed")) == ("closed", "the chat is closed")


def test_a_message_that_was_alone_is_described_by_its_error() -> None:
    assert describe(MessageExhausted(1, HandlerTimeout())) == describe(HandlerTimeout())
    assert describe(MessageExhausted(1, QueryCanceled())) == describe(QueryCanceled())


class SaveFailed(Exception):
    """What a handler makes of an error."""


def wrapped(cause: Exception, how: str) -> Exception:
    """The cause in an error of a handler's own."""
    try:
        if how == "group":
            raise ExceptionGroup("of a task group", [ValueError("x"), cause])
        try:
            raise cause
        except BaseException as error:
            if how == "cause":
                raise SaveFailed from error
            if how == "context":
                raise SaveFailed  # noqa: B904 - as handlers do it
            raise SaveFailed from None
    except Exception as error:
        return error


@pytest.mark.parametrize("how", ["cause", "context", "group"])
def test_a_wrapped_error_decides(how: str) -> None:
    def of(state: str) -> Exception:
        return wrapped(DBAPIError("x", {}, errors.lookup(state)("x")), how)

    assert verdict_on(of("42501"), connection_lost=False) is Verdict.WAIT
    assert verdict_on(of("57014"), connection_lost=False) is Verdict.SLOW
    assert verdict_on(of("23505"), connection_lost=False) is Verdict.ISOLATE
    assert permanent(of("22003"))
    assert not permanent(of("23505"))
    assert describe(of("23505"))[0] == "23505"
    assert permanent(wrapped(Reject("closed", code="closed"), how))
    assert describe(wrapped(Reject("closed", code="closed"), how)) == ("closed", "closed")


def test_a_hidden_cause_does_not_decide() -> None:
    hidden = wrapped(errors.lookup("42501")("x"), "hidden")
    assert verdict_on(hidden, connection_lost=False) is Verdict.ISOLATE
    code, reason = describe(hidden)
    assert code == "SaveFailed"
    assert re.fullmatch(
        r"the handler raised SaveFailed, at tests/unit/test_worker_fate.py:\d+ in wrapped", reason
    )


def test_a_handlers_own_word_counts_whatever_it_wraps() -> None:
    error = Reject("no")
    error.__cause__ = errors.lookup("42501")("x")
    assert verdict_on(error, connection_lost=False) is Verdict.ISOLATE
    assert permanent(error)


def test_errors_that_wrap_each_other_in_a_circle_are_judged() -> None:
    first, second = ValueError("x"), KeyError("y")
    first.__cause__, second.__cause__ = second, first
    assert verdict_on(first, connection_lost=False) is Verdict.ISOLATE


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.lookup("42703")("x"), ("42703", 1)),
        (errors.lookup("53200")("x"), ("53200", 2)),
        (errors.lookup("XX000")("x"), ("XX000", 2)),
        (HandlerMisuse("save called db.commit()"), ("misuse", 1)),
        (errors.lookup("23505")("x"), None),
        (HandlerTimeout(), None),
        (LetOut("CancelledError"), None),
        (ValueError("x"), None),
    ],
)
def test_errors_that_are_nobodys_fault_when_everybody_meets_them(
    error: Exception, expected: tuple[str, int] | None
) -> None:
    assert meets_everybody(error) == expected


def test_an_error_that_was_swallowed_is_described_by_what_it_was() -> None:
    error = SwallowedError("save")
    assert describe(error) == ("misuse", "save went on after an error that aborted the transaction")
    error.__cause__ = errors.lookup("23505")("x")
    assert describe(error) == ("23505", "the handler went on after UniqueViolation (23505)")
