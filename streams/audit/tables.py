"""The tables that agents write: what PostgreSQL cannot read of one holds up no other check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg import sql

from streams.audit.report import Report
from streams.audit.session import Session
from streams.database.refusals import PASSING, sqlstate, words


class Tables:
    """Reads them; one that is gone, of other columns, or not ours to read, is named as wrong.

    `unchecked` are those: nothing more is asked of them in this audit.
    """

    def __init__(self, session: Session, report: Report) -> None:
        self._session, self._report = session, report
        self.unchecked: set[str] = set()

    def rows(
        self,
        table: str,
        statement: sql.Composed,
        parameters: Mapping[str, Any],
        *,
        but: tuple[type[psycopg.Error], ...] = (),
    ) -> list[tuple[Any, ...]]:
        """The rows of a statement about a table; none where it cannot be read.

        psycopg.Error when it is one of `but`, when it may pass, or when the connection is lost.
        """
        if table in self.unchecked:
            return []
        try:
            with self._session.transaction():
                return self._session.rows(statement, **parameters)
        except but:
            raise
        except psycopg.Error as error:
            if self._session.lost or sqlstate(error).startswith(PASSING):
                raise
            self.unchecked.add(table)
            self._report.add("unchecked_table", None, table=table, why=words(error))
            return []
