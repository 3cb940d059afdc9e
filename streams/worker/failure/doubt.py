"""Whether a record without an outbox row may be that of a row in commit, or is nobody's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

# So long a commit may take that waits for no standby.
VISIBLE_SECONDS = 10.0


class Leaf(NamedTuple):
    """A partition of the outbox, as `row_writers` gives it: from `first` to before `until`.

    The range is one of ids, and empty when there is no such partition. `newest` is the newest id
    drawn, `writers` who may be committing into the partition, `standby` whether one of them waits
    for a standby.
    """

    first: int | None
    until: int | None
    newest: int
    writers: Sequence[str]
    standby: bool

    def holds(self, outbox_id: int) -> bool:
        """Whether the row would be in this partition."""
        return (
            self.first is not None
            and self.until is not None
            and self.first <= outbox_id < self.until
        )


@dataclass(slots=True)
class Doubt:
    """What was seen since a row was first missed.

    `writers` are those that may have been writing it all the time.
    """

    since: float = field(default_factory=time.monotonic)
    writers: frozenset[str] | None = None
    standby: bool = False

    def look(self, leaf: Leaf | None) -> None:
        """Take in who may be committing now; None when the row has no partition."""
        writers = frozenset(leaf.writers if leaf else ())
        self.writers = writers if self.writers is None else self.writers & writers
        self.standby = bool(self.writers) and leaf is not None and leaf.standby

    @property
    def decided(self) -> bool:
        """Whether the row would be visible by now, if it was committed."""
        if self.writers is None:
            return False
        return not self.writers or (
            not self.standby and time.monotonic() - self.since > VISIBLE_SECONDS
        )
