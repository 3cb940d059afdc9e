"""Taking on a database that is not the one a relay published from, by an operator's order.

What Kafka has of the other database's life is not known here. So ids it may have drawn are not
drawn again, and what is not known to be published is published. A copy of the rows may have come
without the sequences: what waits stays before what comes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqlalchemy import Connection

from streams.broker import beat
from streams.database import partitions, query
from streams.errors import UsageError
from streams.operate.trail import write_act
from streams.settings import Settings


@dataclass(frozen=True, slots=True)
class Adoption:
    """What adopting would do.

    The relay goes on at `floor`, and the next id is the one after `newest`. `was` tells how it
    stood; it counts on from `beat`.
    """

    relay: str
    floor: int
    newest: int
    was: str
    beat: int

    @property
    def change(self) -> str:
        """What becomes different, in one line."""
        floors = f"at floor {self.floor} (it had {self.was})"
        return f"relay {self.relay} goes on {floors}, the next id is {self.newest + 1}"


def plan(
    connection: Connection, settings: Settings, *, skip: int, force: bool = False
) -> Adoption | None:
    """What there is to adopt; None when this is the database that the relay knows, unless `force`.

    Reads Kafka's beat first; ServiceUnreachable without Kafka.
    """
    beats = beat.read(settings)
    relay = settings.relay.name
    names = {"relay": relay, "publication": settings.relay.publication}
    with connection.begin():
        saved = connection.exec_driver_sql(query("relay_saved"), names).one()
        floor, known_as, identity = saved[0], saved[6], saved[7]
        newest = connection.exec_driver_sql(query("newest_id")).scalar_one()
        drawn = saved[8]
        rows = [tuple(row) for row in connection.exec_driver_sql(query("beats"))]
    counted = next((count for name, count, _ in rows if name == relay), None) or 0
    known = beats.get((relay, identity), 0)
    went_back = known > counted
    if known_as in (None, identity) and drawn >= floor and not went_back and not force:
        return None
    # Ids below the floor were drawn again: which of them are published nobody knows.
    return Adoption(
        relay,
        floor if drawn >= floor else 0,
        max(newest, floor) + skip,
        f"floor {floor}, newest id {drawn}",
        max(counted, known) + 1,
    )


def adopt(
    connection: Connection, settings: Settings, adoption: Adoption, *, who: str, why: str | None
) -> Adoption:
    """Adopt in one transaction, and write it down; what was done.

    Its `newest` is a later one where the business has drawn ids beyond the plan's since.

    UsageError while a relay of this name leads.
    """
    relay = {"relay": adoption.relay}
    with connection.begin():
        held = connection.exec_driver_sql(query("relay_hold"), relay).scalar_one()
        earlier = connection.exec_driver_sql(query("relays_earlier"), {"name": adoption.relay})
        if not held or earlier.scalar_one():
            raise UsageError(f"relay {adoption.relay} leads at this moment: stop it first")
        connection.exec_driver_sql(query("adopt_alone"))
        newest: int = connection.exec_driver_sql(
            query("skip_ids"), {"newest": adoption.newest}
        ).scalar_one()
        adoption = replace(adoption, newest=newest)
        connection.exec_driver_sql(query("skip_drawn"))
        width = settings.outbox.partition_rows or partitions.FIRST_WIDTH
        partitions.ensure_sync(connection, ahead=1, width=width)
        connection.exec_driver_sql(query("relay_adopt"), {**relay, "floor": adoption.floor})
        connection.exec_driver_sql(query("relay_raise_beat"), {**relay, "beat": adoption.beat})
        what = {**relay, "floor": adoption.floor, "newest": adoption.newest, "was": adoption.was}
        write_act(connection, "relay adopt", who, why, what)
    return adoption
