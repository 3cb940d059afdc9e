"""Whether counters agree with what they count: by ranges, and exactly for those in doubt."""

from __future__ import annotations

from streams.audit.report import Report
from streams.audit.tables import Tables
from streams.database import effects
from streams.effect import Effect, Tally
from streams.registry import Registry

LAST = 2**63 - 1


class Tallies:
    """Counts of a full audit."""

    def __init__(self, tables: Tables, registry: Registry, report: Report) -> None:
        self._tables, self._report = tables, report
        effects_of = {
            agent.effect.table: agent.effect for agent in registry.agents.values() if agent.effect
        }
        self._tallies: list[tuple[Effect, Tally]] = [
            (each, each.tally) for each in effects_of.values() if each.tally
        ]
        for effect, tally in self._tallies:
            tables.rows(tally.table, effects.tally_table(effect, tally), {})

    def count(self, after: int, until: int) -> None:
        """Add the effects of a range."""
        for effect, tally in self._tallies:
            bounds = {"after": after, "until": until}
            self._tables.rows(tally.table, effects.tally_range(effect, tally), bounds)

    def compare(self, counted: int) -> None:
        """Name the counters of these ranges that are wrong.

        Ids up to `counted` were counted already: the rest is added.
        """
        self.count(counted, LAST)
        for effect, tally in self._tallies:
            suspects = self._tables.rows(tally.table, effects.tally_suspects(effect, tally), {})
            if not suspects:
                continue
            keys = {f"k{n}": [str(row[n]) for row in suspects] for n in range(len(tally.keys))}
            for *key, counted_as, actual in self._tables.rows(
                tally.table, effects.tally_wrong(effect, tally), keys
            ):
                about = dict(zip(tally.keys, key, strict=True))
                self._report.add(
                    "wrong_tally",
                    None,
                    table=tally.table,
                    **about,
                    says=int(counted_as),
                    found=actual,
                )
