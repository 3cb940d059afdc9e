"""Real conversations from the chatterbot-corpus wheel.

They are in many languages; several are chained into each chat.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from streams.dev.wheels import folder

ROLES = ("user", "assistant")
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a chat."""

    role: str
    message: str


def topics() -> list[Path]:
    """The corpus's files, one a language and subject."""
    return sorted((folder("chatterbot_corpus") / "data").glob("*/*.yml"))


@cache
def conversations(topic: Path) -> tuple[tuple[str, ...], ...]:
    """The conversations of one file; what is broken in it is left out."""
    try:
        content = yaml.load(topic.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return ()
    entries = content.get("conversations") if isinstance(content, dict) else None
    return (
        tuple(tuple(entry) for entry in entries if _is_whole(entry))
        if isinstance(entries, list)
        else ()
    )


def chat(choose: random.Random) -> Iterator[Turn]:
    """A chat about one subject in one language.

    It is several conversations of the corpus, one after the other.
    """
    while not (known := conversations(choose.choice(topics()))):
        pass
    for conversation in choose.choices(known, k=choose.randint(2, 6)):
        # An odd number of turns would let the user answer the next question.
        for position, message in enumerate(conversation[: len(conversation) // 2 * 2]):
            yield Turn(ROLES[position % 2], message)


def _is_whole(entry: Any) -> bool:
    """At least a question and an answer, all of them text that a database can hold."""
    return (
        isinstance(entry, list)
        and len(entry) >= 2
        and all(
            isinstance(message, str) and message.strip() and "\0" not in message
            for message in entry
        )
    )
