"""Where an agent's writes are in the database: what it declares so that the audit can find them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """A table that counts effects.

    `keys` are columns that both tables have, `count` is how many effects there are.
    """

    table: str
    keys: tuple[str, ...]
    count: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One row of `table` for each message, with its outbox id in `column`.

    `where` are columns whose values mark our rows; `fields` maps fields of the payload to the
    columns that hold them as they are; `created_at` is a column equal to the outbox row's; `order`
    is a column that ascends within a conversation. `source` is a column that holds
    `Message.source`: needed in a table that messages of another system end in too.
    """

    table: str
    column: str = "outbox_id"
    source: str | None = None
    where: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    created_at: str | None = None
    order: str | None = None
    tally: Tally | None = None
