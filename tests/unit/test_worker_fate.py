"""What an error means, decided by SQLSTATE and by the state of the connection."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors
from psycopg.errors import QueryCanceled
from sqlalchemy.exc import DBAPIError

from streams.errors import Reject, Retry
from streams.registry import discover
from streams.worker.fate import Costly, HandlerTimeout, Verdict, decide_fate, delay, describe, jittered, judge

AGENT = discover().agents["chat_history_persist"]
OUTAGES = ["08006", "25006", "40001", "40P01", "42501", "53100", "53300", "55P03", "57P01", "57P03", "58030"]
GUILTY = ["22P05", "23505", "23514", "42703", "42P01", "54000", "P0001"]
COSTLY = ["53200", "57014", "25P03"]


@pytest.mark.parametrize("state", OUTAGES)
def test_an_outage_waits(state: str) -> None:
    assert judge(errors.lookup(state)("x"), connection_lost=False) is Verdict.WAIT
    assert judge(DBAPIError("x", {}, errors.lookup(state)("x")), connection_lost=False) is Verdict.WAIT


@pytest.mark.parametrize("state", GUILTY)
def test_a_fault_of_the_message_is_isolated(state: str) -> None:
    try:
        error = errors.lookup(state)("x")
    except KeyError:
        pytest.fail(f"psycopg does not know {state}")
    assert judge(error, connection_lost=False) is Verdict.ISOLATE


@pytest.mark.parametrize("state", COSTLY)
@pytest.mark.parametrize("lost", [False, True])
def test_time_and_memory_are_tried_again_before_anyone_is_charged(state: str, lost: bool) -> None:
    assert judge(errors.lookup(state)("x"), connection_lost=lost) is Verdict.COSTLY
    assert judge(HandlerTimeout(), connection_lost=lost) is Verdict.COSTLY


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
    status, wait = decide_fate(error, attempts, AGENT)
    assert status == expected
    assert (wait is None) == (status == "dead")


def test_retry_after_is_taken_as_it_is() -> None:
    assert decide_fate(Retry(after=7.0), 1, AGENT) == ("retrying", 7.0)


def test_a_lost_connection_is_judged_by_its_state_not_by_the_class() -> None:
    assert judge(psycopg.OperationalError("the connection is lost"), connection_lost=True) is Verdict.WAIT
    # Too many bind parameters raise OperationalError too, with the connection intact.
    assert judge(psycopg.OperationalError("number of parameters"), connection_lost=False) is Verdict.ISOLATE


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), TimeoutError(), Reject("no"), Retry()])
def test_what_a_handler_raises_is_isolated(error: Exception) -> None:
    assert judge(error, connection_lost=False) is Verdict.ISOLATE


def test_delays_double_up_to_half_a_minute_with_jitter() -> None:
    assert [delay(attempt) for attempt in (1, 2, 3, 4, 5, 6, 7, 20)] == [1, 2, 4, 8, 16, 32, 32, 32]
    assert all(0.75 * 8 <= jittered(8) <= 1.25 * 8 for _ in range(100))


def test_a_description_holds_no_text_of_the_message() -> None:
    code, reason = describe(ValueError("canary"))
    assert (code, reason) == ("ValueError", "the handler raised ValueError")
    assert describe(Reject("a\0b \ud800")) == ("rejected", "a\N{REPLACEMENT CHARACTER}b ?")
    assert describe(Reject("the chat is closed", code="closed")) == ("closed", "the chat is closed")


def test_a_message_that_was_alone_is_described_by_its_error() -> None:
    assert describe(Costly(1, HandlerTimeout())) == describe(HandlerTimeout())
    assert describe(Costly(1, QueryCanceled())) == describe(QueryCanceled())
