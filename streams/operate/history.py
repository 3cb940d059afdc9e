"""The whole story of a message or a conversation: enqueued, relayed, tried, persisted or dead.

Never its text. The functions take a synchronous connection; from async code, `await
connection.run_sync(...)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

from sqlalchemy import Connection

from streams.broker.partitioner import partition_of
from streams.database import query
from streams.database.partitions import first_sync
from streams.message_id import MessageId, foreign, name_of, ours
from streams.operate.look import moment

# Ids looked through at a time for a conversation: some 50 ms.
WINDOW = 200_000

# As a worker tells what a run of it waits for.
_PLACE = re.compile(r"\(topic (.+), partition (\d+)\)$")

ENDED = {"consumed": "persisted", "dead": "dead", "discarded": "discarded"}


@dataclass(frozen=True, slots=True)
class HistoryStep:
    """One thing that happened; `at` is None when nobody wrote the time down."""

    stage: str
    at: datetime | None
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MessageHistory:
    """One message: what it is, where it stands, and what happened to it, in order.

    `source:id` if it is another system's.
    """

    outbox_id: MessageId
    biz_type: str
    topic: str
    key: str
    status: str
    events: Sequence[HistoryStep]


def messages(connection: Connection, ids: Iterable[MessageId]) -> list[MessageHistory]:
    """The stories of these messages, each once, in order, ours first.

    For an id that sends another again it is the story of that other one.
    """
    named = list(ids)
    roots = [
        row[0] for row in connection.exec_driver_sql(query("trace_roots"), {"ids": ours(named)})
    ]
    parameters = {"ids": roots, "after": min(roots, default=0)}
    rows = [
        dict(row)
        for row in connection.exec_driver_sql(query("trace_messages"), parameters).mappings()
    ]
    rows += [
        dict(row)
        for row in connection.exec_driver_sql(query("trace_foreign"), foreign(named)).mappings()
    ]
    names = {"names": [str(_name(row)) for row in rows]}
    resends = _grouped(connection, "trace_resends", "outbox_id", parameters)
    actions = _grouped(connection, "trace_actions", "name", names)
    waits: Sequence[Any] = ()
    if any(map(_waits, rows)):
        now = {"at": moment(connection).at}
        waits = connection.exec_driver_sql(query("trace_waits"), now).all()
    return [
        _trace(row, resends.get(_name(row), []), actions.get(str(_name(row)), []), waits)
        for row in rows
    ]


def conversation(
    connection: Connection,
    key: str,
    *,
    source: str = "",
    since: datetime | None = None,
    limit: int = 100,
) -> list[MessageHistory]:
    """The newest `limit` messages with this key, oldest first.

    `since` bounds how far back it looks.

    `source` names another system whose messages are meant.
    """
    if source:
        where = {"source": source, "key": key, "since": since, "limit": limit}
        rows = connection.exec_driver_sql(query("trace_foreign_key"), where)
        return messages(connection, [name_of(source, row[0]) for row in rows])
    first, until = first_sync(connection), connection.exec_driver_sql(query("last_id")).scalar_one()
    ids: list[int] = []
    while len(ids) < limit and until >= first:
        after = until - WINDOW
        window = {"after": after, "until": until, "key": key, "limit": limit - len(ids)}
        ids += [row[0] for row in connection.exec_driver_sql(query("trace_window"), window)]
        older = {"after": after, "since": since}
        if (
            since is not None
            and connection.exec_driver_sql(query("trace_older"), older).scalar_one()
        ):
            break
        until = after
    traces = messages(connection, ids)
    return (
        traces
        if since is None
        else [each for each in traces if (at := each.events[0].at) is None or at >= since]
    )


def direct(connection: Connection, outbox_id: int) -> bool:
    """Whether its caller wrote this message itself, while the outbox was disabled."""
    return bool(
        connection.exec_driver_sql(query("trace_direct"), {"outbox_id": outbox_id}).scalar_one()
    )


def _name(row: Mapping[str, Any]) -> MessageId:
    return name_of(row.get("source", ""), row["outbox_id"])


def _grouped(
    connection: Connection, name: str, by: str, parameters: dict[str, Any]
) -> dict[MessageId, list[Mapping[str, Any]]]:
    groups: dict[MessageId, list[Mapping[str, Any]]] = {}
    # Names of our own queries only; the text is never put together.
    for row in connection.exec_driver_sql(query(name), parameters).mappings():
        groups.setdefault(row[by], []).append(dict(row))
    return groups


def _waits(row: Mapping[str, Any]) -> bool:
    """Whether it is published, and nobody has given it a fate."""
    return row["status"] is None and bool(row["published"])


def _waiting(row: Mapping[str, Any], waits: Sequence[Any]) -> list[HistoryStep]:
    """What the run waits for that the message is in or behind: an outage, a missing column."""
    if not _waits(row):
        return []
    for words, code, since, worker, counts in waits:
        of = _PLACE.search(words)
        partitions = (counts or {}).get(row["topic"])
        if of is None or of[1] != row["topic"]:
            continue
        if partitions is None or partition_of(row["key"], partitions) == int(of[2]):
            about = {"reason": words, "sqlstate": code, "worker": worker}
            return [HistoryStep("waits", since, _some(about, "reason", "sqlstate", "worker"))]
    return []


def _trace(
    row: Mapping[str, Any],
    resends: list[Mapping[str, Any]],
    actions: list[Mapping[str, Any]],
    waits: Sequence[Any] = (),
) -> MessageHistory:
    status = row["status"] or ("published" if row["published"] else "pending")
    # Of another system's message only the time of its record is known.
    stage = "produced" if row.get("source") else "enqueued"
    enqueued = HistoryStep(stage, row["created_at"], _some(row, "bytes", "traceparent"))
    again = [
        HistoryStep(
            "sent again", each["created_at"], {"as": each["resend"], "published": each["published"]}
        )
        for each in resends
    ]
    acts = [
        HistoryStep(
            each["act"], each["at"], _some(each, "who", "why") | _some(each["what"], "error_code")
        )
        for each in actions
    ]
    deaths = [_death(each["died"], each["error"]) for each in actions if each["died"]]
    later = sorted(again + acts + deaths, key=lambda event: cast("datetime", event.at))
    return MessageHistory(
        _name(row),
        row["biz_type"],
        row["topic"],
        row["key"],
        status,
        [enqueued, *_relayed(row), *later, *_fate(row, deaths), *_waiting(row, waits)],
    )


def _relayed(row: Mapping[str, Any]) -> list[HistoryStep]:
    """That it was relayed; when, is written down nowhere.

    Kafka's timestamp of a record is the time of its enqueueing.
    """
    if row["offset"] is not None:
        return [HistoryStep("relayed", None, _some(row, "topic", "partition", "offset"))]
    return [HistoryStep("relayed", None, _some(row, "topic"))] if row["published"] else []


def _death(died: Sequence[Any], error: Sequence[str | None]) -> HistoryStep:
    at, attempts, _ = died
    about = {"attempts": attempts, "error_code": error[0], "error": error[1]}
    return HistoryStep("dead", datetime.fromisoformat(at), _given(about))


def _fate(row: Mapping[str, Any], deaths: Sequence[HistoryStep]) -> list[HistoryStep]:
    """Where the message stands now.

    Its last error stays written down until it is persisted, and after: that was a step before.
    """
    if row["status"] is None:
        return []
    error = {name: row[name] for name in ("error_code", "error")}
    told = any(
        all(death.about.get(name) == value for name, value in error.items()) for death in deaths
    )
    if told and row["status"] != "dead" and not row["attempts"]:
        error = {}
    failed = {"attempts": row["attempts"] or None} | error
    about = failed | {"replays": row["replays"] or None}
    if row["status"] == "consumed":
        about = {"replays": row["replays"] or None, "applied": row["applied"]}
        if row["attempts"] or error.get("error_code"):
            return [
                HistoryStep("failed", None, _given(failed)),
                HistoryStep("persisted", row["updated_at"], _given(about)),
            ]
    elif row["status"] == "retrying":
        about["next_retry_at"] = row["next_retry_at"]
    elif row["status"] == "parked":
        about["behind"] = row["behind"] and name_of(row.get("source", ""), row["behind"])
    elif row["status"] == "replaying":
        about["source"] = row["source_id"]
    stage = ENDED.get(row["status"], row["status"])
    return [HistoryStep(stage, row["updated_at"], _given(about))]


def _given(about: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in about.items() if value is not None}


def _some(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: row[name] for name in names if row.get(name) is not None}
