"""What an error code means in words, and what usually mends it: SQLSTATEs, and our own words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a message with this error code met.

    `says` tells it in one sentence, `do` what to do before a replay.
    """

    says: str
    do: str


_SQLSTATE = re.compile(r"[0-9A-Z]{5}")
_EXCEPTION = re.compile(r"[A-Z][A-Za-z0-9]*[a-z][A-Za-z0-9]*")
_HANDLER = "read the error; mend the handler or the data it needs, deploy, then replay"

# By the whole code, else by the class of an SQLSTATE.
MEANINGS: Mapping[str, Meaning] = {
    # Our own words.
    "json": Meaning(
        "its payload is not JSON",
        "have its producer mended; discard it, or replay it with a right payload",
    ),
    "null": Meaning(
        "its payload is null",
        "have its producer mended; discard it, or replay it with a right payload",
    ),
    "payload": Meaning(
        "its payload does not fit its event: a field is missing, of another type, or holds NUL",
        "replay it with a right payload, or deploy an event that takes it, then replay",
    ),
    "key": Meaning("its record's key is no key", "have its producer mended, then discard it"),
    "biz_type": Meaning(
        "no worker knew its biz_type in time",
        "deploy a worker with an agent for it, then replay; or retire the biz_type",
    ),
    "crash": Meaning(
        "workers died again and again while they handled it",
        "look for what killed them (memory, a native library); mend that, then try one",
    ),
    "rejected": Meaning("its handler refused it for good", _HANDLER),
    "retry": Meaning("its handler asked for another try until its attempts were used up", _HANDLER),
    "handler": Meaning("its handler raised an error of its own", _HANDLER),
    "misuse": Meaning(
        "its handler did what none may: end the transaction, close its connection,"
        " go on after an error",
        "mend the handler, deploy, then replay",
    ),
    "timeout": Meaning(
        "its handler took longer than worker.handler_timeout",
        "see what the handler waits for; mend it or raise worker.handler_timeout, then replay",
    ),
    "unpublishable": Meaning(
        "no Kafka record can carry it",
        "see the reason: too large, or no such topic; mend that, then replay",
    ),
    # PostgreSQL.
    "22": Meaning(
        "the database cannot take a value: too long, out of range, or of another form",
        "replay it with a right payload, or widen the column, then replay",
    ),
    "22001": Meaning(
        "a text is longer than its column", "widen the column, or replay with a shorter text"
    ),
    "22003": Meaning(
        "a number is out of its column's range", "widen the column, or replay with a right number"
    ),
    "22P02": Meaning(
        "a text is not of the form that its column needs", "replay it with a right payload"
    ),
    "23": Meaning(
        "a constraint of a table refuses it", "see which constraint; mend the data, then replay"
    ),
    "23502": Meaning(
        "a column that must have a value gets none",
        "replay with that field, or let the column be null",
    ),
    "23503": Meaning(
        "it names a row of another table that is not there",
        "see which constraint; once that row exists, replay",
    ),
    "23505": Meaning(
        "a row with the same unique key is there already",
        "see which constraint; if it was written by another way, discard it, else mend the key,"
        " then replay",
    ),
    "23514": Meaning(
        "a CHECK of a table refuses a value",
        "replay with a right value, or change the CHECK, then replay",
    ),
    "40": Meaning("the database gave its transaction up for another one", "replay it"),
    "42": Meaning(
        "the handler's statement does not fit the database: a table, column or right is missing",
        "migrate, or deploy the fix, then replay",
    ),
    "42501": Meaning("the worker's role lacks a right", "grant it (docs/security.md), then replay"),
    "53": Meaning("the server lacked room, memory or connections", "give it some, then replay"),
    "54": Meaning(
        "it is beyond a limit of the server", "make it smaller, then replay with another payload"
    ),
    "57014": Meaning(
        "its statement took longer than the handler's timeout",
        "see what it waits for: a lock, a missing index; mend it, then replay",
    ),
    "XX": Meaning(
        "the server met an internal error", "read PostgreSQL's log; mend it, then try one"
    ),
}


def meaning(code: str | None) -> Meaning | None:
    """What this code means; None when nobody knows.

    Unknown is a code that a handler made up, or a new SQLSTATE.
    """
    if not code:
        return None
    if code in MEANINGS:
        return MEANINGS[code]
    if _SQLSTATE.fullmatch(code):
        return MEANINGS.get(code[:2])
    if _EXCEPTION.fullmatch(code):
        return Meaning(f"its handler raised {code}", _HANDLER)
    return None
