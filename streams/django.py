"""Django's connection enqueues, in `transaction.atomic`: nothing leaves the database before COMMIT.

    from streams.django import enqueue

    with transaction.atomic():
        order.save()
        enqueue(ChatHistoryPersist(user_id=7, conversation_id="c1", role="user", message="hi"))

`streams.outbox.start()` is called once for each process, in the `ready` of an AppConfig for
example.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

from django.db import connections

from streams import outbox, telemetry
from streams.database import query
from streams.errors import UsageError


@overload
def enqueue(  # type: ignore[overload-overlap]  # a sequence is an object too
    events: Sequence[Any], *, using: str = ..., ordered: bool = ..., traceparent: str | None = ...
) -> list[int]: ...
@overload
def enqueue(
    events: object, *, using: str = ..., ordered: bool = ..., traceparent: str | None = ...
) -> int: ...
def enqueue(
    events: object, *, using: str = "default", ordered: bool = False, traceparent: str | None = None
) -> int | list[int]:
    """Enqueue one event or a sequence of them, as `streams.outbox.enqueue_sync` does.

    Returns its outbox_id, or a list of theirs.

    `using` names the database of Django's settings. UsageError outside of `transaction.atomic`, or
    when that is no PostgreSQL; OutboxNotConfigured, OutboxDisabled, PayloadInvalid: nothing was
    sent then.
    """
    connection = connections[using]
    if connection.vendor != "postgresql":
        raise UsageError(
            f"database {using!r} of Django is {connection.vendor}: expected postgresql,"
            " where the outbox is"
        )
    # A TestCase's own blocks are around everything: what a view forgets would fail in production
    # only.
    if all(getattr(block, "_from_testcase", False) for block in connection.atomic_blocks):
        raise UsageError(
            "enqueue was called outside of transaction.atomic: the message would be committed"
            " whatever becomes of what it tells"
        )
    if not (rows := outbox.checked_rows(events, ordered)):
        return []
    with (
        telemetry.enqueueing({row[1] for row in rows}, traceparent) as parent,
        connection.cursor() as cursor,
    ):
        if ordered:
            cursor.execute(query("enqueue_in_order"), outbox.keys_of(rows))
            if cursor.fetchall()[0][0] > outbox.ORDERED_KEYS:
                cursor.execute(query("ordered_locks"))
                outbox.refuse_locks(cursor.fetchone()[0])
        name, parameters = outbox.insert_rows(rows, parent)
        cursor.execute(query(name), parameters)
        return outbox.ids_of(events, [row[0] for row in cursor.fetchall()])
