"""A transaction that is begun again where another one was in its way.

Workers and operators lock several messages, and no order is kept by all of them: a deadlock or a
lock not had in time says nothing of what was to be done.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from streams.database.refusals import IN_THE_WAY, sqlstate

T = TypeVar("T")

PAUSES = (0.1, 0.2, 0.4, 0.8, 1.6)  # seconds at most between two tries


def transacted(connection: Connection, step: Callable[[], T]) -> T:
    """What `step` gives, in a transaction of its own; it may be called several times.

    DBAPIError when others were in the way of the last try too, or of another kind.
    """
    for pause in PAUSES:
        try:
            with connection.begin():
                return step()
        except DBAPIError as error:
            if sqlstate(error) not in IN_THE_WAY:
                raise
        time.sleep(random.uniform(pause / 2, pause))
    with connection.begin():
        return step()
