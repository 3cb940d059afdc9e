"""What failures teach later attempts: how often, what everybody meets, who failed alone."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from streams.events import Message
from streams.worker.failure.doubt import Doubt
from streams.worker.failure.probe import Probe

WORTH = 40  # messages that cost as much as one call of a handler does, however few messages it gets
MOST_PIECE = 1000
MOSTLY = 0.3  # of messages that fail: each is tried alone
LEAST_GUILTY = 0.001  # never nothing: it divides
RECENTLY = 60.0  # seconds for which a failure makes others of its topic likely


@dataclass(slots=True)
class FailureRate:
    """How often messages of a biz_type failed lately: it decides how many are tried at once."""

    messages: float = 500.0
    guilty: float = LEAST_GUILTY
    half_life: float = 5000.0  # messages

    @property
    def piece_size(self) -> int:
        """How many messages cost least to try at once.

        A call costs as much as WORTH messages, and one that fails is lost with what it did: many
        small pieces cost calls, few large ones lose much. Where most fail, nothing is saved by
        trying two at once.
        """
        if self.guilty > MOSTLY * self.messages:
            return 1
        return min(MOST_PIECE, max(1, round(math.sqrt(WORTH * self.messages / self.guilty))))

    def add(self, *, messages: int = 0, guilty: int = 0) -> None:
        """What was found; older findings fade as messages pass."""
        fade = 0.5 ** (messages / self.half_life)
        self.messages, self.guilty = (
            self.messages * fade + messages,
            max(LEAST_GUILTY, self.guilty * fade + guilty),
        )


def _failed_before() -> FailureRate:
    """The rate after a failure: what failed is likely to fail again, until it is mended.

    Then a few successful calls show it.
    """
    return FailureRate(messages=2.0, guilty=1.0, half_life=100.0)


@dataclass(slots=True)
class Trouble:
    """What may be met by every message of a biz_type.

    `messages` are those that have met it; `disproved` when one worked since the first had.
    """

    messages: set[int] = field(default_factory=set)
    disproved: bool = False

    def is_everybodys(self, enough: int) -> bool:
        """Whether nothing says that it is the fault of those who met it."""
        return not self.disproved and len(self.messages) >= enough


@dataclass(slots=True)
class FailureHistory:
    """What outlives one transaction.

    known_failures           messages that cost time or a connection while they were alone, and how
    lost_alone               how many connections each message has lost while it was alone
    invisible                ids without an outbox row, and who may be committing it
    troubles                 what every message of a biz_type may be meeting now, by biz_type and
                             code
    sound                    the message of each biz_type that worked last
    failed                   when a message of each topic last failed for the first time
    waits                    for how many more runs of a topic conversations may be waiting
    probes                   how quickly it is told, for each topic, whether anything waits
    first                    how often messages of each biz_type fail, the first time
    again                    how often those fail that failed before
    row_count_unreliable     biz_types whose inserted rows once told nothing of who is guilty
    deferred                 whether a COMMIT failed although every call had succeeded
    """

    known_failures: dict[int, Exception] = field(default_factory=dict)
    lost_alone: Counter[int] = field(default_factory=Counter)
    invisible: dict[int, Doubt] = field(default_factory=dict)
    troubles: dict[tuple[str, str], Trouble] = field(default_factory=dict)
    sound: dict[str, Message[Any]] = field(default_factory=dict)
    failed: dict[str, float] = field(default_factory=dict)
    waits: Counter[str] = field(default_factory=Counter)
    probes: defaultdict[str, Probe] = field(default_factory=lambda: defaultdict(Probe))
    first: defaultdict[str, FailureRate] = field(default_factory=lambda: defaultdict(FailureRate))
    again: defaultdict[str, FailureRate] = field(
        default_factory=lambda: defaultdict(_failed_before)
    )
    row_count_unreliable: set[str] = field(default_factory=set)
    deferred: bool = False

    def worked(self, biz_type: str, messages: Sequence[Message[Any]]) -> None:
        """Note that a call succeeded.

        What other messages of this biz_type have met is not what everybody meets.
        """
        self.sound[biz_type] = messages[-1]
        for (kind, _), trouble in self.troubles.items():
            if kind == biz_type:
                trouble.disproved = True

    @contextmanager
    def failing(self, outbox_id: int, error: Exception) -> Iterator[None]:
        """Within this the message fails with this error, without a call of its handler."""
        self.known_failures[outbox_id] = error
        try:
            yield
        finally:
            self.known_failures.pop(outbox_id, None)

    def recently_failing(self, topic: str) -> bool:
        """Whether messages of the topic failed lately, often enough to try few at once."""
        if time.monotonic() - self.failed.get(topic, -RECENTLY) >= RECENTLY:
            return False
        return any(rate.piece_size < MOST_PIECE for rate in self.first.values())
