"""What became of messages: one Fate each, in the order in which they were given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload


@dataclass(frozen=True, slots=True)
class Fate:
    """One message: `status` is consumed, retrying, parked, replaying, dead or discarded.

    Pending if nothing took it yet.

    `attempts` is how often it failed, `error_code` and `error` say why the last time; `delay` is
    how many seconds after that failure a worker tries it again.
    """

    outbox_id: int
    biz_type: str
    key: str
    status: str
    attempts: int = 0
    error_code: str | None = None
    error: str | None = None
    delay: float | None = None

    def __str__(self) -> str:
        why = f" ({self.error_code}: {self.error})" if self.error_code else ""
        return f"{self.biz_type} {self.outbox_id} is {self.status}{why}"


class Status(str):
    """The status of a message, equal to its word; where an assertion shows it, it says why."""

    _why: str

    def __new__(cls, fate: Fate) -> Status:
        status = super().__new__(cls, fate.status)
        status._why = f" ({fate.error_code}: {fate.error})" if fate.error_code else ""
        return status

    def __repr__(self) -> str:
        return f"{super().__repr__()}{self._why}"


class Fates(Sequence[Fate]):
    """The fates of messages; `written` is how many of them had their effect just now.

    Not earlier, and not only set aside.
    """

    def __init__(self, rows: Iterable[Sequence[Any]], written: int) -> None:
        self._fates = [Fate(*row) for row in rows]
        self.written = written

    @overload
    def __getitem__(self, index: int) -> Fate: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Fate]: ...
    def __getitem__(self, index: int | slice) -> Fate | Sequence[Fate]:
        return self._fates[index]

    def __len__(self) -> int:
        return len(self._fates)

    def __repr__(self) -> str:
        return f"<Fates: {'; '.join(map(str, self._fates)) or 'none'}>"

    @property
    def ids(self) -> list[int]:
        """Their outbox ids: give them to `persist` to deliver the same messages again."""
        return [fate.outbox_id for fate in self._fates]

    @property
    def statuses(self) -> list[str]:
        """Their statuses; where a comparison of them fails, each that has one shows its error."""
        return [Status(fate) for fate in self._fates]
