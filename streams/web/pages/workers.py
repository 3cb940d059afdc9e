"""Who works: processes with what they have and wait for, and the partitions of the topics."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from streams.operate import look
from streams.operate.snapshot import Partition, Process
from streams.web.page import Nothing, Page, Source

HOUR = 3600.0
SHOWN = 200


@dataclass(frozen=True, slots=True)
class Workers:
    """Processes of the last hour, the newest first, and how far the group is in each partition."""

    processes: tuple[Process, ...]
    partitions: tuple[Partition, ...]

    @property
    def shown(self) -> tuple[Process, ...]:
        """Those that live, or did a minute ago."""
        return tuple(each for each in self.processes if each.state in ("alive", "silent"))

    @property
    def past(self) -> tuple[Process, ...]:
        """Those that ended or are gone."""
        return tuple(each for each in self.processes if each.state not in ("alive", "silent"))

    @property
    def pressing(self) -> tuple[Partition, ...]:
        """As many partitions as a page holds: those that nobody has, then those with most lag."""
        if len(self.partitions) <= SHOWN:
            return self.partitions
        urgent = sorted(
            self.partitions, key=lambda each: (each.owner is not None, -(each.lag or 0))
        )
        return tuple(urgent[:SHOWN])


def read(source: Source, _: msgspec.Struct) -> Workers:
    """Look at what processes say of themselves."""
    connection = source.connection
    with connection.begin():
        at = look.moment(connection).at
        processes = look.processes_of(connection, HOUR, at)
        group = source.settings.worker.group
        return Workers(processes, look.partitions_of(connection, processes, at, group))


PAGE = Page(
    path="/workers/",
    title="Workers",
    about="Processes, and partitions with their lag.",
    query=Nothing,
    gives=Workers,
    read=read,
    template="workers.html",
    command=lambda _: ("streams", "status"),
    nav="workers",
)
