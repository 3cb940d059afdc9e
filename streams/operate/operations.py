"""Bulk acts that one can trust: a preview that binds, a few first, stopped when they fail again.

    preview   these 5,000 messages, in this order, 40 of them late; a row with the hash of their
              ids, gone after an hour
    submit    the same messages again, up to the last death that the preview saw: another hash is
              refused, and says why
    step      1 message, then 10, then 89, then 1,000 at a time; the next begins when these have
              their fates
    stop      by itself when more than a tenth of a step is dead again, or fails again; or when
              somebody says so

Whoever holds the advisory lock of an operation works it: a command, a worker, a page's process.
What was sent is noted in the transaction that sends it, so whoever takes it up after a death goes
on where the last one was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from streams.database import locks, query
from streams.database.refusals import IN_THE_WAY, lasting, refusal, sqlstate
from streams.errors import ServiceUnreachable, StreamsError, UsageError
from streams.message_id import MessageId, name_of, parts_of, read_name
from streams.operate.replay import BATCH, Operator, discard, replay, slice_of
from streams.operate.selection import Choice, NotDead
from streams.operate.trail import write_act

FIRST_STEPS = (1, 10, 89)
TOLERATED = 0.1
"""The share of a step that may fail again."""
POLL_SECONDS = 1.0
PORTION_SECONDS = 5.0
"""How long one call works at a rate: others come to their turn, and whoever stops it is heard."""
ACTS = ("replay", "discard")


class PreviewChanged(StreamsError):
    """What was previewed is not what would be worked now: nothing was done."""


class NothingDead(UsageError):
    """No dead message fits the filter: there is nothing to do."""


class NoSuchOperation(StreamsError):
    """There is no operation of this number, or its preview is over an hour old."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One bulk act of `planned` messages.

    Of these, `late` come after later ones of their conversation went on. `done` were worked,
    `failed` of them are dead or fail again; of those left alone `circling` were replayed too often,
    and `gone` were no longer dead, or have nothing to send any more: erased, or without a row.
    `state` is preview, running, stopped (`reason` says why) or done. `at_once`: without trying a
    few first.
    """

    id: int
    act: str
    who: str
    why: str | None
    filter: Mapping[str, Any]
    force: bool
    rate: float | None
    at_once: bool
    through: int
    hash: str
    planned: int
    late: int
    done: int
    failed: int
    circling: int
    gone: int
    state: str
    reason: str | None
    step: int
    step_begin: int
    step_end: int
    created_at: datetime
    submitted_at: datetime | None
    ended_at: datetime | None
    expired: bool

    @property
    def left_alone(self) -> int:
        """How many were not worked."""
        return self.circling + self.gone

    @property
    def choice(self) -> Choice:
        """Which messages were meant."""
        about = dict(self.filter)
        if "since" in about:
            about["since"] = datetime.fromisoformat(about["since"])
        if "ids" in about:
            about["ids"] = tuple(read_name(str(name)) for name in about["ids"])
        return Choice(**about)


@dataclass(frozen=True, slots=True)
class Item:
    """One message of an operation.

    `outcome` is waiting, sent, done, failed, queued (behind an earlier message of its conversation,
    when it was last looked at), circling or gone.
    """

    position: int
    outbox_id: MessageId
    outcome: str
    at: datetime | None


def preview(
    connection: Connection,
    act: str,
    choice: Choice,
    operator: Operator,
    *,
    force: bool = False,
    rate: float | None = None,
    at_once: bool = False,
) -> Operation:
    """Write down what the act would work now; NotDead when a named message is not dead.

    NothingDead for none.
    """
    if act not in ACTS:
        raise UsageError(f"unknown act {act!r:.40}: expected one of {', '.join(ACTS)}")
    with connection.begin():
        connection.exec_driver_sql(query("operation_forget"))
        through, unseen = connection.exec_driver_sql(query("operation_bound")).one()
        plan = _plan(connection, choice, through, unseen)
        missing = set(choice.ids or ()) - {name for name, _ in plan}
        if missing and not choice.limit:
            first = min(missing, key=parts_of)
            raise NotDead(
                f"message {first} is not dead, or does not fit the filter: nothing was done"
            )
        if not plan:
            raise NothingDead("no dead message fits: nothing to do")
        parameters = {
            "act": act,
            "who": operator.who,
            "why": operator.why,
            "filter": orjson.dumps(_filter(choice)).decode(),
            "force": force,
            "rate": rate,
            "at_once": at_once,
            "through": through,
            "unseen": unseen,
            "hash": _hash(name for name, _ in plan),
            "planned": len(plan),
            "late": sum(not held for _, held in plan),
        }
        number: int = connection.exec_driver_sql(
            query("operation_preview"), parameters
        ).scalar_one()
        return _read(connection, number)


def submit(connection: Connection, number: int, operator: Operator) -> Operation:
    """Let a preview be worked, exactly as it was; submitting it twice does nothing.

    PreviewChanged says what is different now; NoSuchOperation when there is no such preview any
    more.
    """
    with connection.begin():
        lock = connection.exec_driver_sql(query("operation_lock"), {"id": number})
        unseen = lock.scalar_one_or_none() or []
        operation = _read(connection, number)
        if operation.state != "preview":
            return operation
        plan = _plan(connection, operation.choice, operation.through, unseen)
        names = [name for name, _ in plan]
        if _hash(names) != operation.hash:
            raise PreviewChanged(
                f"preview {number} is of {operation.planned:,} messages, and {len(names):,} of them"
                " are dead as they were: preview it again"
            )
        sources, ids = zip(*map(parts_of, names), strict=True)
        items = {"id": number, "sources": list(sources), "ids": list(ids)}
        connection.exec_driver_sql(query("operation_add_items"), items)
        submitted = {"id": number, "who": operator.who, "why": operator.why}
        connection.exec_driver_sql(query("operation_submit"), submitted)
        return _read(connection, number)


def stop(connection: Connection, number: int, operator: Operator) -> Operation:
    """Work no further message of it; what was sent takes its way."""
    with connection.begin():
        connection.exec_driver_sql(query("operation_lock"), {"id": number})
        if _end(connection, number, "stopped", f"stopped by {operator.who}"):
            write_act(connection, "stop", operator.who, operator.why, {"operation": number})
        return _read(connection, number)


def resume(connection: Connection, number: int, operator: Operator) -> Operation:
    """Let a stopped operation go on, one message first."""
    with connection.begin():
        connection.exec_driver_sql(query("operation_lock"), {"id": number})
        if connection.exec_driver_sql(query("operation_resume"), {"id": number}).rowcount:
            write_act(connection, "resume", operator.who, operator.why, {"operation": number})
        return _read(connection, number)


def operation(connection: Connection, number: int) -> Operation:
    """One operation as it stands; NoSuchOperation."""
    with connection.begin():
        return _read(connection, number)


def operations(
    connection: Connection, *, before: int | None = None, limit: int = 50
) -> list[Operation]:
    """Operations, the newest first; `before` is the id of the last one of the page before."""
    with connection.begin():
        parameters = {"before": before, "limit": limit}
        rows = connection.exec_driver_sql(query("operations_page"), parameters).mappings()
        return [Operation(**dict(row)) for row in rows]


def items(connection: Connection, number: int, *, after: int = 0, limit: int = 50) -> list[Item]:
    """Messages of an operation in their order, from behind a position on."""
    with connection.begin():
        parameters = {"id": number, "after": after, "limit": limit}
        rows = connection.exec_driver_sql(query("operation_items"), parameters)
        return [
            Item(position, name_of(source, outbox_id), outcome, at)
            for position, source, outbox_id, outcome, at in rows
        ]


@contextmanager
def held(connection: Connection, number: int) -> Iterator[bool]:
    """Whether this session is the one that works the operation, within the block.

    The server ends one that says nothing for a minute, so that another process goes on.
    """
    lock, before = {"lock": locks.operation(number)}, ""
    with connection.begin():
        taken = bool(connection.exec_driver_sql(query("lock_alone"), lock).scalar_one())
        if taken:
            before = connection.exec_driver_sql(query("operation_idle")).one()[0]
    try:
        yield taken
    finally:
        if taken and not connection.invalidated:
            connection.rollback()
            with connection.begin():
                connection.exec_driver_sql(query("operation_idle_as_before"), {"before": before})
                connection.exec_driver_sql(query("lock_give"), lock)


def work(connection: Connection, number: int) -> float | None:
    """Do what can be done now: seconds after which to come back, None when it has ended.

    To be called by whoever holds it; a step is several short transactions at most. What cannot be
    done of it, or what the database refuses whoever asks, stops it with the reason: it would hold
    up every other operation. What is over by itself is the caller's to wait out.
    """
    try:
        return _work(connection, number)
    except ServiceUnreachable:
        raise
    except StreamsError as error:
        reason = str(error)
    except DBAPIError as error:
        if sqlstate(error) in IN_THE_WAY:
            return POLL_SECONDS
        if _not_ours(error) or not lasting(error):
            raise
        reason = refusal(error)
    with connection.begin():
        _end(connection, number, "stopped", reason)
    return None


def _work(connection: Connection, number: int) -> float | None:
    with connection.begin():
        connection.exec_driver_sql(query("operation_lock"), {"id": number})
        now = _read(connection, number)
        if now.state != "running":
            return None
        # Whoever takes it up keeps its rate: fates that were noted since only make it slower.
        if (pause := _due_in(connection, now)) > 0:
            return pause
        _settle(connection, now)
        sent, failed, size, _ = _step(connection, now)
        rows = _unsent(connection, now)
        if not rows and not now.at_once and failed > TOLERATED * size:
            reason = f"{failed:,} of {size:,} messages of this step failed again"
            _end(connection, number, "stopped", reason)
            return None
        if sent and not rows and not now.at_once:
            return POLL_SECONDS
        # Nothing of the step before could be tried: that is no reason to try more at once.
        tried = now.step if size or not now.step else now.step - 1
        limit = BATCH if now.at_once or now.act == "discard" else _size(tried)
        parameters = {"id": number, "after": now.step_end, "limit": limit}
        if not rows:
            rows = connection.exec_driver_sql(query("operation_next"), parameters).all()
            if not rows:
                _end(connection, number, "done", None)
                return None
            step = {"id": number, "begin": now.step_end, "end": rows[-1][0], "step": tried + 1}
            connection.exec_driver_sql(query("operation_step"), step)
    if now.rate is not None:
        rows = rows[: max(1, int(now.rate * PORTION_SECONDS))]
    sent = _send(
        connection,
        now,
        [(position, name_of(source, outbox_id)) for position, source, outbox_id in rows],
    )
    polls = sent and now.act == "replay" and not now.at_once
    return max(_slice_seconds(now.rate), POLL_SECONDS if polls else 0.0)


def work_all(connection: Connection) -> float:
    """Do what can be done of every running operation that nobody else works.

    It returns the seconds after which to come back. DBAPIError, after the others, where this role
    may not work one: another process may.
    """
    with connection.begin():
        numbers = list(connection.exec_driver_sql(query("operations_running")).scalars())
    pauses, refused = [5.0], None
    for number in numbers:
        with held(connection, number) as taken:
            try:
                if taken and (pause := work(connection, number)) is not None:
                    pauses.append(pause)
            except DBAPIError as error:
                if not _not_ours(error):
                    raise
                refused = error
    if refused is not None:
        raise refused
    return min(pauses)


def _not_ours(error: DBAPIError) -> bool:
    """Whether it is this role that may not."""
    return sqlstate(error) == "42501"


class _Items:
    """Keeps account of an operation's messages in the transactions that work them."""

    def __init__(
        self, connection: Connection, operation: Operation, positions: Mapping[MessageId, int]
    ) -> None:
        self.operation = operation.id
        self._connection, self._through, self._positions = connection, operation.through, positions

    def goes_on(self) -> bool:
        parameters = {"id": self.operation}
        return bool(
            self._connection.exec_driver_sql(query("operation_goes_on"), parameters).scalar()
        )

    def still(self, ids: Sequence[MessageId]) -> list[MessageId]:
        sources, numbers = _parts(ids)
        parameters = {"sources": sources, "ids": numbers, "through": self._through}
        rows = self._connection.exec_driver_sql(query("operation_still"), parameters)
        same = {name_of(source, outbox_id) for source, outbox_id in rows}
        return [name for name in ids if name in same]

    def note(self, outcomes: Mapping[MessageId, str]) -> None:
        _note(
            self._connection,
            self.operation,
            {self._positions[name]: outcome for name, outcome in outcomes.items()},
        )


def _send(connection: Connection, now: Operation, rows: Sequence[tuple[int, MessageId]]) -> int:
    """Work these messages; those that another process sent before it died are sent already.

    How many there were to work: the others were left alone.
    """
    ledger = _Items(connection, now, {name: position for position, name in rows})
    operator, names = Operator(now.who, now.why), [name for _, name in rows]
    if now.act == "replay":
        steps = replay(
            connection, names, operator, now.choice, force=now.force, rate=now.rate, ledger=ledger
        )
    else:
        steps = discard(connection, names, operator, now.choice, rate=now.rate, ledger=ledger)
    worked = 0
    for step in steps:
        worked += step.done
        with connection.begin():
            connection.exec_driver_sql(query("operation_count"), {"id": now.id})
    return worked


def _settle(connection: Connection, now: Operation) -> None:
    """Note the fates of what the step under way has sent."""
    step = {"id": now.id, "begin": now.step_begin, "end": now.step_end}
    ids = connection.exec_driver_sql(query("operation_sent"), step).scalars().all()
    fates = connection.exec_driver_sql(query("operation_fates"), step | {"ids": list(ids)})
    _note(connection, now.id, {position: fate for position, fate in fates if fate is not None})
    connection.exec_driver_sql(query("operation_count"), {"id": now.id})


def _unsent(connection: Connection, now: Operation) -> Sequence[Any]:
    """What the process that began this step never came to."""
    step = {"id": now.id, "begin": now.step_begin, "end": now.step_end}
    return connection.exec_driver_sql(query("operation_unsent"), step).all()


def _slice_seconds(rate: float | None) -> float:
    """For how long the messages that go at once last at so many a second."""
    return 0.0 if rate is None else slice_of(rate) / rate


def _due_in(connection: Connection, now: Operation) -> float:
    """Seconds until its rate lets the next messages go."""
    if now.rate is None:
        return 0.0
    step = {"id": now.id, "begin": now.step_begin, "end": now.step_end}
    rested = connection.exec_driver_sql(query("operation_rested"), step).scalar()
    return 0.0 if rested is None else max(0.0, _slice_seconds(now.rate) - rested)


def _step(connection: Connection, now: Operation) -> Sequence[Any]:
    step = {"id": now.id, "begin": now.step_begin, "end": now.step_end}
    return connection.exec_driver_sql(query("operation_step_state"), step).one()


def _size(step: int) -> int:
    return FIRST_STEPS[step] if step < len(FIRST_STEPS) else BATCH


def _end(connection: Connection, number: int, state: str, reason: str | None) -> bool:
    """Whether it was running."""
    parameters = {"id": number, "state": state, "reason": reason}
    return connection.exec_driver_sql(query("operation_end"), parameters).rowcount > 0


def _note(connection: Connection, number: int, outcomes: Mapping[int, str]) -> None:
    if outcomes:
        rows = [
            {"position": position, "outcome": outcome} for position, outcome in outcomes.items()
        ]
        parameters = {"id": number, "outcomes": orjson.dumps(rows).decode()}
        connection.exec_driver_sql(query("operation_outcomes"), parameters)


def _read(connection: Connection, number: int) -> Operation:
    row = connection.exec_driver_sql(query("operation"), {"id": number}).mappings().one_or_none()
    if row is None or row["expired"]:
        raise NoSuchOperation(f"there is no operation {number}: a preview is gone after an hour")
    return Operation(**dict(row))


def _plan(
    connection: Connection, choice: Choice, through: int, unseen: Sequence[int]
) -> list[tuple[MessageId, bool]]:
    parameters = choice.parameters() | {"through": through, "unseen": unseen}
    rows = connection.exec_driver_sql(query("operation_plan"), parameters)
    return [(read_name(name), waits) for name, waits in rows]


def _filter(choice: Choice) -> dict[str, Any]:
    about = {name: value for name, value in asdict(choice).items() if value is not None}
    if "ids" in about:
        about["ids"] = [str(name) for name in about["ids"]]
    if "since" in about:
        about["since"] = about["since"].isoformat()
    return about


def _hash(names: Iterator[MessageId] | Sequence[MessageId]) -> str:
    return hashlib.sha256("\n".join(map(str, names)).encode()).hexdigest()


def _parts(names: Sequence[MessageId]) -> tuple[list[str], list[int]]:
    parts = [parts_of(name) for name in names]
    return [source for source, _ in parts], [outbox_id for _, outbox_id in parts]
