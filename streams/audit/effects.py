"""Whether each message's effect is there once, in time, and says what its payload says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import errors

from streams import codec
from streams.audit.report import Report
from streams.audit.session import Session
from streams.audit.tables import Tables
from streams.database import effects
from streams.errors import MessageError
from streams.registry import Agent, Registry

# A payload that PostgreSQL cannot read as jsonb: NUL or a lone surrogate in a field nobody asked
# for, nested too deep.
UNREADABLE = (psycopg.DataError, errors.StatementTooComplex)


class Effects:
    """The checks of every agent that says how its effect is recognised."""

    def __init__(
        self, session: Session, tables: Tables, registry: Registry, report: Report
    ) -> None:
        self._session, self._report, self._reading = session, report, tables
        self._agents = [
            agent for _, agent in sorted(registry.agents.items()) if agent.effect is not None
        ]
        self._tables = {
            agent.effect.table: agent.effect for agent in self._agents if agent.effect is not None
        }
        self._uncompared = 0
        for name in sorted(set(registry.agents) - {agent.event.biz_type for agent in self._agents}):
            report.notes.append(
                f"{name} does not say how its effect is recognised: only its states were checked"
            )

    def look(self, where: dict[str, Any]) -> set[int]:
        """Check the effects of the messages that were read; the ids of those that are wrong.

        Those in a table that cannot be read are not among them.
        """
        wrong: set[int] = set()
        # What reads the table alone comes first: what it refuses is no payload's fault.
        for table, effect in self._tables.items():
            rows = self._reading.rows(table, effects.doubled(effect), where)
            for outbox_id, count in rows:
                self._report.add("doubled_effect", outbox_id, table=table, effects=count)
                wrong.add(outbox_id)
            parameters = where | {"biz_types": self._kinds(table)}
            for (outbox_id,) in self._reading.rows(table, effects.phantoms(effect), parameters):
                self._report.add("phantom_effect", outbox_id, table=table)
                wrong.add(outbox_id)
            if effect.order and where["ids"] is None:
                rows = self._reading.rows(table, effects.reordered(effect), where)
                for outbox_id, earlier in rows:
                    self._report.add("reordered_effect", outbox_id, table=table, before=earlier)
        for agent in self._agents:
            wrong |= self._compare(agent, where, None)
        return wrong

    @property
    def unchecked(self) -> frozenset[str]:
        """The tables with effects that cannot be read, as far as that was tried."""
        return frozenset(self._tables.keys() & self._reading.unchecked)

    def try_all(self) -> None:
        """Find out which tables cannot be read; `audit_rows` is empty."""
        self.look({"after": 0, "until": 0, "ids": None})

    def checked(self, biz_type: str) -> bool:
        """Whether effects of this kind were looked for, or nobody says what they are."""
        return all(
            agent.effect is None or agent.effect.table not in self._reading.unchecked
            for agent in self._agents
            if agent.event.biz_type == biz_type
        )

    def beyond(self) -> None:
        """Effects whose ids were never drawn."""
        for table, effect in self._tables.items():
            for (outbox_id,) in self._reading.rows(table, effects.beyond(effect), {}):
                self._report.add("phantom_effect", outbox_id, table=table)
        if self._uncompared:
            self._report.notes.append(
                f"{self._uncompared} payloads could not be compared: PostgreSQL cannot read them"
            )

    def _kinds(self, table: str) -> list[str]:
        return [
            agent.event.biz_type
            for agent in self._agents
            if agent.effect and agent.effect.table == table
        ]

    def _compare(self, agent: Agent, where: dict[str, Any], ids: Sequence[int] | None) -> set[int]:
        """Compare in one statement.

        When a payload cannot be read, it compares halves, until that one stands alone.
        """
        assert agent.effect is not None
        table, statement, wrong = agent.effect.table, effects.compare(agent.effect), set[int]()
        # Of halves no more is read than what they span.
        bounds = {
            "after": min(ids) - 1 if ids else where["after"],
            "until": max(ids) if ids else where["until"],
            "biz_type": agent.event.biz_type,
        }
        try:
            parameters = bounds | {"ids": None if ids is None else list(ids)}
            rows = self._reading.rows(table, statement, parameters, but=UNREADABLE)
        except UNREADABLE:
            left = [row[0] for row in self._session.rows("audit_ids")] if ids is None else ids
            if len(left) <= 1:
                self._uncompared += len(left)
                return wrong
            middle = len(left) // 2
            return self._compare(agent, where, left[:middle]) | self._compare(
                agent, where, left[middle:]
            )
        for outbox_id, kind, status in rows:
            fields = self._altered(agent, outbox_id) if kind == "altered_effect" else None
            if fields != []:
                state = status or "none" if kind == "unclaimed_effect" else None
                self._report.add(kind, outbox_id, table=table, status=state, fields=fields)
                wrong.add(outbox_id)
        return wrong

    def _altered(self, agent: Agent, outbox_id: int) -> list[str]:
        """The fields that differ by type and value: the text of equal numbers may."""
        assert agent.effect is not None
        table, statement = agent.effect.table, effects.contents(agent.effect)
        try:
            rows = self._reading.rows(table, statement, {"id": outbox_id}, but=UNREADABLE)
        except UNREADABLE:  # a value that Python has not, such as a time that never comes
            return list(agent.effect.fields)
        if not rows:
            return []
        text, same_time, *values = rows[0]
        try:
            payload = codec.decode(text, agent.event.payload)
        except MessageError:
            return ["payload"]
        pairs = zip(agent.effect.fields, values, strict=True)
        altered = [name for name, value in pairs if getattr(payload, name) != value]
        return altered if same_time else [*altered, agent.effect.created_at or ""]
