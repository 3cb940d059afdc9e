"""Bulk acts: which there were, and what one will do, does, or did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec

from streams.message_id import MAX_ID
from streams.operate import operations
from streams.operate.operations import Item, Operation
from streams.web.messages import Refusal
from streams.web.page import Page, Source
from streams.web.pages.parameters import Before, Limit

Number = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1, description="the number of an operation")]


class OperationsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the list goes on."""

    before: Before | None = None
    limit: Limit = 50


class OperationQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which operation, and where the list of its messages goes on."""

    operation: Number
    after: Annotated[int, msgspec.Meta(ge=0, le=MAX_ID)] = 0
    limit: Limit = 100


@dataclass(frozen=True, slots=True)
class Operations:
    """One page, the newest first; `before` is where the next one begins, None on the last."""

    operations: list[Operation]
    before: int | None


@dataclass(frozen=True, slots=True)
class OneOperation:
    """One operation; its messages once it was submitted.

    `after` is where the list goes on, None at its end.
    """

    operation: Operation
    items: list[Item]
    after: int | None


def read(source: Source, query: OperationsQuery) -> Operations:
    """Operations that were submitted."""
    newest = operations.operations(source.connection, before=query.before, limit=query.limit + 1)
    shown = newest[: query.limit]
    return Operations(shown, shown[-1].id if len(newest) > query.limit else None)


def read_one(source: Source, query: OperationQuery) -> OneOperation:
    """One of them, or a preview; Refusal when there is none."""
    try:
        operation = operations.operation(source.connection, query.operation)
    except operations.NoSuchOperation as error:
        raise Refusal(404, str(error)) from None
    items = operations.items(
        source.connection, operation.id, after=query.after, limit=query.limit + 1
    )
    shown = items[: query.limit]
    return OneOperation(operation, shown, shown[-1].position if len(items) > query.limit else None)


PAGE = Page(
    path="/operations/",
    title="Operations",
    about="Bulk replays and discards.",
    query=OperationsQuery,
    gives=Operations,
    read=read,
    template="operations.html",
    command=lambda _: ("streams", "dead", "replay", "--dry-run"),
    nav="operations",
    of_acts=True,
)
ONE = Page(
    path="/operations/{operation}",
    title="Operation",
    about="What one operation will do, does or did.",
    query=OperationQuery,
    gives=OneOperation,
    read=read_one,
    template="operation.html",
    command=lambda _: ("streams", "dead", "replay", "--dry-run"),
    nav="operations",
    of_acts=True,
)
