"""Named queries of `db/queries/*.sql`: a `-- name --` heading and a line of why above each.

Parameters are psycopg's `%(name)s`, so a query runs on a psycopg cursor as it is and on a
SQLAlchemy connection through `exec_driver_sql`; nothing is ever formatted into one.
"""

from __future__ import annotations

import re
from functools import cache
from typing import LiteralString

from streams.database.files import sql_folder

_HEADING = re.compile(r"^-- ([a-z_]+) --$", re.MULTILINE)


def query(name: str) -> LiteralString:
    """The statement of that name; KeyError names it when there is none."""
    # The text comes from files of this package only, which is what LiteralString asks for.
    return _load()[name]


@cache
def _load() -> dict[str, str]:
    statements: dict[str, str] = {}
    for file in sorted((sql_folder() / "queries").iterdir(), key=lambda entry: entry.name):
        parts = _HEADING.split(file.read_text(encoding="utf-8"))
        for name, body in zip(parts[1::2], parts[2::2], strict=True):
            if name in statements:
                raise ValueError(
                    f"query {name!r} is defined twice, again in db/queries/{file.name}"
                )
            statements[name] = body.strip().rstrip(";")
    return statements
