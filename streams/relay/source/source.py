"""What a leader needs of where rows come from, whether that is the log or the table."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Protocol, Self

from streams.relay.postgres.floor import Floor
from streams.relay.source.rows import Rows


class Source(Protocol):
    """Committed rows in the order in which they are sent.

    It is entered before the first row is read, and left after the last confirmation.
    """

    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def __aiter__(self) -> AsyncIterator[Rows]:
        """Rows, each time with the position that they lead up to."""

    def confirm(self, position: int | None) -> None:
        """Take in that everything up to this position is with the broker; None: nothing yet."""

    def floor(self, confirmed: Callable[[], int | None]) -> Floor:
        """How the floor is known while rows come from here.

        `confirmed` says up to where they are with the broker.
        """

    def provable(self, confirmed: int | None, saved: int | None) -> int | None:
        """What may be confirmed of the two positions: with the broker, and saved."""
