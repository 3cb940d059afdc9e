"""How far a range of ids reaches, in each partition, in offsets and in the order of persisting.

Two ranges can hold a pair in the wrong order only where they overlap in one of the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

# Ids read at a time: a fraction of a second each, and never a long transaction.
WIDTH = 100_000


class Extent(NamedTuple):
    """The smallest and largest of each."""

    first_applied: int
    last_applied: int
    first_offset: int
    last_offset: int

    def crosses(self, later: Extent) -> bool:
        """Whether a message here may be in the wrong order to one of a later range."""
        return self.last_applied > later.first_applied or self.last_offset > later.first_offset

    def merged(self, other: Extent) -> Extent:
        """Both."""
        return Extent(
            min(self.first_applied, other.first_applied),
            max(self.last_applied, other.last_applied),
            min(self.first_offset, other.first_offset),
            max(self.last_offset, other.last_offset),
        )


Place = tuple[str, int]


@dataclass(slots=True)
class Range:
    """Ids after `after` up to `until` that were looked at.

    `ids` of the topics they were on then; `unchecked` are the tables of agents that could not be
    read, so that effects of theirs are still to be looked at.
    """

    after: int
    until: int
    extents: dict[Place, Extent]
    ids: dict[str, str]
    unchecked: frozenset[str] = frozenset()

    def crosses(self, other: Range) -> bool:
        """Whether they may hold a pair in the wrong order.

        A topic that began again since is no longer comparable.
        """
        first, second = (self, other) if self.after <= other.after else (other, self)
        return any(
            extent.crosses(second.extents[place])
            for place, extent in first.extents.items()
            if place in second.extents and first.ids.get(place[0]) == second.ids.get(place[0])
        )

    def merged(self, later: Range) -> Range:
        """One range of both, which follow each other and have the same left to be checked."""
        extents = dict(self.extents)
        for place, extent in later.extents.items():
            extents[place] = extents[place].merged(extent) if place in extents else extent
        return Range(self.after, later.until, extents, later.ids, later.unchecked)

    def plain(self) -> dict[str, Any]:
        """As it is stored."""
        extents = [[*place, *extent] for place, extent in sorted(self.extents.items())]
        return {"extents": extents, "topics": self.ids, "unchecked": sorted(self.unchecked)}


def extents(rows: Iterable[tuple[Any, ...]]) -> dict[Place, Extent]:
    """From rows of (topic, partition, first and last applied, first and last offset)."""
    return {(row[0], row[1]): Extent(*row[2:]) for row in rows}


def stored(after: int, until: int, reach: Mapping[str, Any]) -> Range:
    """The other way round."""
    reaches, unchecked = extents(map(tuple, reach["extents"])), reach.get("unchecked", ())
    return Range(after, until, reaches, reach["topics"], frozenset(unchecked))
