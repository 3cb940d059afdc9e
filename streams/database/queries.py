"""Named queries of `db/queries/*.sql`: a `-- name --` heading and a line of why above each.

Parameters are psycopg's `%(name)s`, so a query runs on a psycopg cursor as it is; `statement` is
the same for a SQLAlchemy connection of any driver. Nothing is ever formatted into one.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, LiteralString

from streams.database.files import sql_folder

if TYPE_CHECKING:
    from sqlalchemy import TextClause

_HEADING = re.compile(r"^-- ([a-z_]+) --$", re.MULTILINE)


def query(name: str) -> LiteralString:
    """The statement of that name; KeyError names it when there is none."""
    # The text comes from files of this package only, which is what LiteralString asks for.
    return _load()[name]


@cache
def statement(name: str) -> TextClause:
    """The query of that name for any of SQLAlchemy's drivers.

    Its parameters are `:name`, not psycopg's `%(name)s`.
    """
    # Only here: whoever needs the text alone starts without SQLAlchemy.
    from sqlalchemy import text

    return text(re.sub(r"%\((\w+)\)s", r":\1", query(name)))


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
