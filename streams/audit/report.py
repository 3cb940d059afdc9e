"""What an audit says: what is wrong, how often, which for example, and what is worth knowing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from streams.message_id import MessageId

EXAMPLES = 20

# Every kind, and what it means; the JSON names are a public interface.
KINDS = {
    "missing": (
        "published, the workers are past it, it has no state, and its record is not on the topic"
    ),
    "skipped": (
        "its record is on the topic below the committed offset, and it has no state and was not"
        " rejected"
    ),
    "no_effect": "consumed, but its effect is not there",
    "unclaimed_effect": "its effect is there, but its state does not say consumed",
    "phantom_effect": "an effect of a message that there is not",
    "doubled_effect": "more than one effect",
    "altered_effect": "its effect is not what its payload says",
    "reordered_effect": (
        "its effect stands before that of a message persisted earlier in its conversation"
    ),
    "wrong_tally": "a counter differs from what it counts",
    "unchecked_table": "what an agent writes cannot be read, and was not checked",
    "out_of_order": "persisted before a message that was delivered earlier in its conversation",
    "same_place": "two messages with one partition and offset",
    "moved": "messages of one conversation in two partitions",
    "off_the_end": "its offset is behind the end of its partition",
    "flipped": "its status and whether it was persisted contradict each other",
    "blocking": "settled, but still in the line of its conversation, which waits for it",
    "forgotten": "open, but in no line: nobody will take it up",
    "misplaced": "in the line of another conversation",
    "wrong_open": "what outbox_open says of it, or does not say, is not what its state says",
    "bad_source": "waits for, or took, a replay that is not its own",
    "bad_resend": "sends again what is no message, or one of another conversation",
    "rowless_state": "a state of a message that there is not",
    "stuck": "first of its conversation, overdue, and nobody takes it up",
    "lost_replay": "its replay was published, the workers are past it, and it still waits",
    "unknown_biz_type": (
        "messages wait for a worker that knows their biz_type, and their conversations with them"
    ),
    "unpublished": "committed long ago, and no relay has published it",
    "unread": "published long ago, and the workers have not come to it",
    "no_sign_of_life": "work waits, and nobody is there to do it",
    "key_mismatch": "its key is not what its payload's key field says: it may come out of order",
    "committed_beyond_end": "the committed offset is behind the end of the partition",
}


@dataclass(slots=True)
class Report:
    """The whole answer; `wrong` holds, for each kind, how many and some examples.

    `foreign` counts other systems' messages,
    `envelopes` says up to which offset each envelope topic was read."""

    complete: bool
    first: int = 0
    until: int = 0
    floor: int = 0
    messages: int = 0
    late: int = 0
    left: int = 0
    repaired: int = 0
    seconds: float = 0.0
    lagging: dict[str, list[int]] = field(default_factory=dict)
    foreign: dict[str, int] = field(default_factory=dict)
    envelopes: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    wrong: dict[str, dict[str, Any]] = field(default_factory=dict)
    _seen: set[tuple[str, Any]] = field(default_factory=set)

    def add(self, kind: str, outbox_id: MessageId | None, **about: Any) -> None:
        """One thing that is wrong; the same one twice counts once."""
        known = kind, outbox_id if outbox_id is not None else tuple(about.items())
        if known in self._seen:
            return
        self._seen.add(known)
        entry = self.wrong.setdefault(kind, {"count": 0, "meaning": KINDS[kind], "examples": []})
        entry["count"] += 1
        if len(entry["examples"]) < EXAMPLES:
            named = {} if outbox_id is None else {"outbox_id": outbox_id}
            entry["examples"].append(
                named | {name: value for name, value in about.items() if value is not None}
            )

    def says(self, kind: str, outbox_id: MessageId) -> bool:
        """Whether that was said of this message."""
        return (kind, outbox_id) in self._seen

    @property
    def count(self) -> int:
        """How many things are wrong."""
        return sum(entry["count"] for entry in self.wrong.values())

    def plain(self) -> dict[str, Any]:
        """As JSON has it, in a stable shape."""
        return {
            "ok": not self.wrong,
            "complete": self.complete,
            "first": self.first,
            "until": self.until,
            "floor": self.floor,
            "messages": self.messages,
            "foreign": self.foreign,
            "envelopes": self.envelopes,
            "wrong": self.wrong,
            "late": self.late,
            "left": self.left,
            "lagging": self.lagging,
            "repaired": self.repaired,
            "notes": self.notes,
            "seconds": round(self.seconds, 3),
        }
