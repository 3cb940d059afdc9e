"""What an error means: for the run (wait, or find who is guilty), and for a guilty message.

Handlers wrap errors: `raise SaveFailed() from error`, an ExceptionGroup of a TaskGroup, an error
raised while another one was handled. What is wrapped decides (`decisive`): a missing grant stays
nobody's fault, whatever it is called on its way.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from enum import Enum, auto
from typing import Any

import psycopg
from sqlalchemy.exc import DBAPIError

from streams.errors import MessageError, Reject, Retry
from streams.registry import Agent
from streams.worker.failure.frames import Frame, frames_of, is_written_in, text_of_frames

# An outage, a failover (25006), a lock that is taken, a forgotten grant, a full disk: never the
# message's fault.
OUTAGE_CLASSES = ("08", "25006", "40", "42501", "53", "55", "57P", "58")
# Time and memory may be the message's fault after all: tried as they are a few times, then the
# guilty one is charged.
RESOURCE_STATES = ("57014", "25P03", "53200")
# The statement does not fit the database: a bug, a missing table or column. One message that fails
# so proves nothing about it. With what an object has to be before it can be used (55000), and a
# policy that refuses a row (42501, see _is_outage).
MISFIT_CLASSES = ("0A", "26", "3D", "3F", "42", "40002", "55000", "55P04")
# Trouble of the server: when every message meets it, it is an outage, although one message alone
# may be its cause.
TROUBLE_CLASSES = ("53200", "XX")
# What time cannot heal: data out of range or of the wrong form, a column's own constraints, limits
# of the server.
PERMANENT_CLASSES = ("22", "23502", "23514", "54")
# What the statement names does not exist, or may not be used; the server says which, in words.
NAMING_CLASSES = ("3F", "42")
_MISSING = re.compile(r'\b(column|relation|table|function|schema|type) (?:"([^"]+)"|([\w.]+))')
# Where the server says, with the SQLSTATE of a missing grant, that a policy of row level security
# refuses a row.
POLICY = "ExecWithCheckOptions"
# And that a trigger or function of somebody's own says so, with any SQLSTATE it likes.
RAISE = "exec_stmt_raise"
LONGEST_WAIT = 366 * 86400.0  # seconds: what is due later than this is due never


class WrongTimes(Exception):
    """Records whose time is not their outbox rows' although all else is.

    It is a setting of Kafka, not another life.
    """


class HandlerTimeout(Exception):
    """A handler took longer than worker.handler_timeout; `frames` are where it waited then."""

    def __init__(self, frames: Sequence[Frame] = ()) -> None:
        super().__init__()
        self.frames = frames


class MessageExhausted(Exception):
    """One message, tried alone, took its time or its connection.

    If it was no outage, it is condemned.
    """

    def __init__(self, outbox_id: int, error: Exception) -> None:
        super().__init__(name_of(error))
        self.outbox_id, self.error = outbox_id, error


class HandlerBroken(Exception):
    """Every message of a biz_type fails, because of its statement or of the server.

    It is not the messages' fault.
    """


class HandlerMisuse(Exception):
    """A handler did what none may.

    It ended the transaction, closed its connection, or left a statement running.
    """


class LetOut(Exception):
    """A handler let something out that is no error, and would end more than its call.

    For example a CancelledError or SystemExit.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(f"the handler let {kind} out")
        self.kind = kind


class SwallowedError(Exception):
    """A handler went on after an error that had aborted the transaction.

    The cause is that error, where it is known.
    """

    def __init__(self, handler: str) -> None:
        super().__init__(f"{handler} went on after an error that aborted the transaction")


class TransactionEnded(Exception):
    """A handler ended the transaction.

    What it was to decide together is committed, or undone, in part.
    """


class Verdict(Enum):
    """What to do with a run whose transaction failed."""

    WAIT = auto()  # an outage: the same run again, nothing counted
    ISOLATE = auto()  # find the guilty messages
    SLOW = auto()  # find them after some more tries, one message at a time
    CHARGE = auto()  # one message is found: it fails without a call from now on
    UNSEEN = auto()  # what others committed is not visible yet: the same run again, soon
    DISPLACED = auto()  # another suspect calls handlers: the same run again, when it may
    STOP = auto()  # whoever works the run has to know


def verdict_on(error: BaseException, connection_lost: bool) -> Verdict:
    """The verdict on an error of a run.

    A lost connection is judged by its state, not by the exception's class.

    Too many bind parameters raise OperationalError as well, and waiting would not help them.
    """
    cause = decisive(error)
    state = sqlstate(cause)
    if isinstance(cause, HandlerTimeout) or state in RESOURCE_STATES:
        return Verdict.SLOW
    if connection_lost and isinstance(cause, HandlerMisuse):
        return Verdict.SLOW  # it was taken away for that
    if connection_lost or isinstance(cause, HandlerBroken | WrongTimes) or _is_outage(cause):
        return Verdict.WAIT
    return Verdict.ISOLATE


def decisive(error: BaseException) -> BaseException:
    """The one of an error and all that it wraps that says what to do.

    What a handler says itself, a Reject or a Retry that wraps something, counts as it is. Else an
    outage comes first, then what takes time or memory, a Reject or Retry, an error of PostgreSQL,
    one that no value can be bound with, and the first member of a group.
    """
    if isinstance(error, MessageError):
        return error
    errors = list(_wrapped(error))
    kinds = (
        _is_outage,
        lambda each: (
            isinstance(each, HandlerTimeout | HandlerBroken) or _state(each) in RESOURCE_STATES
        ),
        lambda each: isinstance(each, HandlerMisuse),
        lambda each: isinstance(each, MessageError),
        lambda each: _state(each) is not None,
        lambda each: isinstance(each, psycopg.DataError | UnicodeError),
        lambda each: not isinstance(each, BaseExceptionGroup),
    )
    for is_kind in kinds:
        for each in errors:
            if is_kind(each):
                return each
    return error


def meets_everybody(error: BaseException) -> tuple[str, int] | None:
    """(what it is, how many messages have to meet it) of an error that may be nobody's fault.

    It is nobody's fault when every message meets it.
    """
    cause = decisive(error)
    state = _state(cause)
    if isinstance(cause, HandlerMisuse):
        return describe(cause)[0], 1
    if state is not None and state.startswith(MISFIT_CLASSES):
        return state, 1
    if state is not None and state.startswith(OUTAGE_CLASSES) and _said_by(cause) == RAISE:
        return state, 1
    return (state, 2) if state is not None and state.startswith(TROUBLE_CLASSES) else None


def fate_of(error: BaseException, attempts: int, agent: Agent) -> tuple[str, float | None]:
    """(status, seconds until the next attempt) of a message that failed *attempts* times."""
    if attempts >= agent.attempts or permanent(error):
        return "dead", None
    after = getattr(error, "after", None) if isinstance(error, Retry) else None
    if isinstance(after, int | float) and not math.isnan(after):
        return "retrying", min(max(0.0, after), LONGEST_WAIT)
    return "retrying", jittered(delay(attempts, agent.first_delay, agent.most_delay))


def permanent(error: BaseException) -> bool:
    """Whether trying the same message again cannot help."""
    cause = decisive(error)
    if isinstance(cause, psycopg.Error):
        # Without a SQLSTATE the client itself refused to bind the value.
        return (
            isinstance(cause, psycopg.DataError)
            if cause.sqlstate is None
            else _permanent_state(cause.sqlstate)
        )
    return isinstance(cause, Reject | UnicodeError)


def delay(attempt: int, first: float = 1.0, most: float = 32.0) -> float:
    """Seconds to wait after attempt number *attempt* failed.

    They are `first`, twice that, and so on, at most `most`.
    """
    return float(min(most, first * 2.0 ** (min(attempt, 32) - 1)))


def jittered(seconds: float) -> float:
    """The seconds spread by a quarter, so that what failed together returns one by one."""
    return seconds * random.uniform(0.75, 1.25)


def sqlstate(error: BaseException) -> str | None:
    """The five characters PostgreSQL gave, if it was PostgreSQL."""
    return _state(decisive(error))


def describe(error: BaseException) -> tuple[str, str]:
    """(code, reason) for the state row, without a word of the message.

    Server details can quote the row, so they are left out. The reason says where in the user's own
    code it came up, and which table, column or constraint the server names.
    """
    cause = decisive(error)
    if isinstance(cause, MessageError):
        return storable(text_of(cause.code))[:100], storable(text_of(cause))[:2000]
    code, reason = _code_and_reason(error, cause)
    where = text_of_frames(frames(error))
    return code, storable(f"{reason}, at {where}" if where else reason)[:2000]


def frames(error: BaseException) -> list[Frame]:
    """The frames of the user's own code that say where it came up, innermost first."""
    cause = decisive(error)
    return list(cause.frames) if isinstance(cause, HandlerTimeout) else frames_of(error, cause)


def without_text(error: BaseException) -> dict[str, str]:
    """What a log line says of an error: its class, the SQLSTATE, and where it came up.

    It says nothing that a handler says of the error.
    """
    cause = decisive(error)
    state, where = _state(cause), text_of_frames(frames(error))
    names = _names(cause, frames(error)) if isinstance(cause, psycopg.Error) else ""
    about = {"error": name_of(cause), "sqlstate": state, "names": names, "at": storable(where)}
    return {name: text for name, text in about.items() if text}


def _code_and_reason(error: BaseException, cause: BaseException) -> tuple[str, str]:
    if isinstance(cause, HandlerTimeout):
        return "timeout", "the handler took longer than worker.handler_timeout"
    if isinstance(cause, HandlerMisuse | SwallowedError | TransactionEnded):
        return "misuse", str(cause)
    if isinstance(cause, LetOut):
        return cause.kind, str(cause)
    if isinstance(cause, psycopg.Error) and cause.sqlstate:
        went_on = "the handler went on after " if isinstance(error, SwallowedError) else ""
        names = _names(cause, frames_of(error, cause))
        return (
            cause.sqlstate,
            f"{went_on}{name_of(cause)} ({cause.sqlstate}){f': {names}' if names else ''}",
        )
    return name_of(cause), f"the handler raised {name_of(cause)}"


def server_words(error: BaseException) -> str:
    """What the server or the way to it says of an outage, in one line.

    It has nothing that could quote a message.
    """
    cause = decisive(error)
    if isinstance(cause, psycopg.OperationalError) and cause.sqlstate is None:
        return (str(cause).strip().splitlines() or [""])[-1].strip()
    # What a RAISE says is somebody's own text, and no outage.
    if isinstance(cause, psycopg.Error) and _is_outage(cause):
        return cause.diag.message_primary or ""
    return ""


def name_of(error: BaseException) -> str:
    """The name of its class, as it can be stored."""
    return storable(type(error).__name__)[:100]


def text_of(value: object) -> str:
    """What a handler says, if it says anything: an error's own methods can fail, too."""
    try:
        return str(value)
    except Exception as error:  # whatever it is, it must not hide what failed first
        return f"a {type(value).__name__} without a text: {type(error).__name__}"


def storable(text: str) -> str:
    """The text without what PostgreSQL refuses: a reason must never fail in its turn."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def _permanent_state(state: str) -> bool:
    return state.startswith(PERMANENT_CLASSES)


def _names(error: psycopg.Error, own: Sequence[Frame]) -> str:
    """The table, column and constraint that the server names.

    What does not exist only when the code has the name.

    A handler that formats what a message says into its statement would have that quoted as the name
    of a column.
    """
    diag = error.diag
    named: Sequence[tuple[str, Any]] = (
        ("table", diag.table_name),
        ("column", diag.column_name),
        ("constraint", diag.constraint_name),
    )
    names = [f"{kind} {name}" for kind, name in named if name]
    if not names and (error.sqlstate or "").startswith(NAMING_CLASSES):
        for kind, quoted, plain in _MISSING.findall(diag.message_primary or ""):
            name = quoted or plain.rpartition(".")[2]
            if is_written_in(name, own):
                names.append(f"{'table' if kind == 'relation' else kind} {name}")
    return ", ".join(names)


def _state(error: BaseException) -> str | None:
    return error.sqlstate if isinstance(error, psycopg.Error) else None


def _is_outage(error: BaseException) -> bool:
    state = _state(error)
    if state is None or state in RESOURCE_STATES or not state.startswith(OUTAGE_CLASSES):
        return False
    if state.startswith(MISFIT_CLASSES) and state != "42501":
        return False
    return _said_by(error) not in (POLICY, RAISE)


def _said_by(error: BaseException) -> str | None:
    """The server's own function that raised it."""
    return error.diag.source_function if isinstance(error, psycopg.Error) else None


def _wrapped(error: BaseException) -> Iterator[BaseException]:
    """The error and all that it wraps, the nearest first, each once."""
    seen: set[int] = set()
    errors = [error]
    while errors:
        current = errors.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, MessageExhausted):
            errors.append(current.error)
        elif isinstance(current, DBAPIError) and isinstance(current.orig, BaseException):
            errors.append(current.orig)
        else:
            yield current
        if isinstance(current, BaseExceptionGroup):
            errors += current.exceptions
        if current.__cause__ is not None:
            errors.append(current.__cause__)
        elif current.__context__ is not None and not current.__suppress_context__:
            errors.append(current.__context__)
