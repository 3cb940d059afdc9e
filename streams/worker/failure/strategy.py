"""How a run is given to its handlers: as a whole, in pieces or one by one."""

from __future__ import annotations

from enum import IntEnum, auto


class Strategy(IntEnum):
    """How a run is worked, from the fastest way to the most careful one."""

    WHOLE = auto()  # all at once: an error fails the run
    BISECT = auto()  # in savepoints, to find who is guilty
    SINGLE = auto()  # in savepoints too, each message on its own
