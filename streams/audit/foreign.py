"""Other systems' messages: each state by itself, and whether it and its effect agree.

What they sent and nobody persisted cannot be seen from here: their outbox is theirs.
"""

from __future__ import annotations

from streams.audit.ranges import WIDTH
from streams.audit.report import Report
from streams.audit.session import Session
from streams.audit.tables import Tables
from streams.database import effects
from streams.effect import Effect
from streams.message_id import name_of
from streams.registry import Registry

FIRST, LAST = -(2**63), 2**63 - 1


class Foreign:
    """The checks of everything in `outbox_foreign`.

    Settled messages are forgotten after `days`, None: never.
    """

    def __init__(
        self,
        session: Session,
        tables: Tables,
        registry: Registry,
        report: Report,
        *,
        days: float | None,
    ) -> None:
        self._session, self._report, self._reading = session, report, tables
        self._days = days
        self._tables: dict[str, tuple[Effect, list[str]]] = {}
        for biz_type, agent in sorted(registry.agents.items()):
            if agent.effect is not None and agent.effect.source:
                self._tables.setdefault(agent.effect.table, (agent.effect, []))[1].append(biz_type)
            elif agent.effect is not None and registry.envelopes:
                report.notes.append(
                    f"{biz_type}: its effect names no source column: effects of other systems'"
                    " messages are not told apart"
                )

    def look(self) -> None:
        """One range after another of each system."""
        for (source,) in self._session.rows("foreign_sources"):
            # Effects below the first message that is known to have been persisted may be those of
            # states long deleted.
            after, known = FIRST, LAST
            while after < LAST:
                where = {"source": source, "after": after}
                ends = self._session.rows("foreign_until", **where, width=WIDTH)
                where["until"] = after = ends[0][0] if ends else LAST
                [(count, persisted)] = self._session.rows("foreign_count", **where, days=self._days)
                known = min(known, persisted or LAST)
                self._report.foreign[source] = self._report.foreign.get(source, 0) + count
                self._look(source, where, known)

    def _look(self, source: str, where: dict[str, object], known: int) -> None:
        for outbox_id, kind, status in self._session.rows("foreign_faults", **where):
            self._report.add(kind, name_of(source, outbox_id), status=status)
        for table, (effect, biz_types) in self._tables.items():
            parameters = where | {"biz_types": biz_types, "known": known}
            rows = self._reading.rows(table, effects.foreign(effect), parameters)
            for outbox_id, kind, status in rows:
                self._report.add(kind, name_of(source, outbox_id), table=table, status=status)
