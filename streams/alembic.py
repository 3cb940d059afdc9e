"""For the business's own Alembic: `include_object` keeps autogenerate away from our tables.

    # env.py
    from streams.alembic import include_object

    context.configure(..., include_object=include_object)

In a schema of their own our tables are out of its sight anyway.
"""

from __future__ import annotations

import re
from typing import Any

from streams.database.migrate import CHAT_TABLES, TABLES
from streams.database.partitions import PARTITIONED
from streams.database.revisions import CHAT_HISTORY_VERSION_TABLE, VERSION_TABLE

_OURS = frozenset({*TABLES, *CHAT_TABLES, VERSION_TABLE, CHAT_HISTORY_VERSION_TABLE})
_PARTITION = re.compile(rf"({'|'.join(PARTITIONED)})_\d+")


def include_object(
    thing: Any, name: str | None, kind: str, reflected: bool, compare_to: Any
) -> bool:
    """False for a table of ours, and what belongs to one, that is only in the database.

    Alembic calls it with each thing.

    A table that your own models have under such a name stays yours.
    """
    if not reflected or compare_to is not None:
        return True
    table = name if kind == "table" else getattr(getattr(thing, "table", None), "name", None)
    return table is None or (table not in _OURS and _PARTITION.fullmatch(table) is None)
