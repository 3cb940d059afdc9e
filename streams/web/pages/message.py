"""What happened to one message: every step with its time, without its text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from streams.message_id import MessageId, read_name
from streams.operate import history
from streams.operate.meaning import Meaning, meaning
from streams.web.messages import Refusal
from streams.web.page import Page, Source
from streams.web.pages.parameters import Name


class MessageQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which message."""

    message: Name


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened.

    `seconds` are those after the step before that has a time, None where nobody knows.
    """

    stage: str
    at: datetime | None
    seconds: float | None
    about: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Message:
    """One message's story; `meaning` is that of its last error."""

    outbox_id: MessageId
    biz_type: str
    topic: str
    key: str
    source: str
    status: str
    steps: tuple[Step, ...]
    meaning: Meaning | None


def read(source: Source, query: MessageQuery) -> Message:
    """The story of a message; Refusal when there is none.

    For a row that sends another one again, it is that other one's.
    """
    try:
        name = read_name(query.message)
    except ValueError:
        raise Refusal(
            400, f"'message' is {query.message!r:.40}: expected an id of at most 2^63 - 1"
        ) from None
    with source.connection.begin():
        stories = history.messages(source.connection, [name])
        if not stories and isinstance(name, int) and history.direct(source.connection, name):
            raise Refusal(
                404, f"message {name} was written by its caller, while outbox.enabled was false"
            )
    if not stories:
        raise Refusal(404, f"there is no message {name}")
    story = stories[0]
    codes = [step.about["error_code"] for step in story.events if step.about.get("error_code")]
    return Message(
        story.outbox_id,
        story.biz_type,
        story.topic,
        story.key,
        str(story.outbox_id).rpartition(":")[0],
        story.status,
        _steps(story.events),
        meaning(codes[-1] if codes else None),
    )


def _steps(events: Any) -> tuple[Step, ...]:
    steps: list[Step] = []
    last: datetime | None = None
    for event in events:
        passed = (event.at - last).total_seconds() if event.at and last else None
        steps.append(Step(event.stage, event.at, passed, event.about))
        last = event.at or last
    return tuple(steps)


PAGE = Page(
    path="/messages/{message}",
    title="Message",
    about="What happened to one message.",
    query=MessageQuery,
    gives=Message,
    read=read,
    template="message.html",
    command=lambda query: ("streams", "trace", query.message),
    nav="messages",
)
