"""The pages to look at, in the order of the rail: each is also a call of the API."""

from __future__ import annotations

from typing import Any

from streams.web.page import Page
from streams.web.pages import (
    acts,
    cause,
    conversation,
    conversations,
    dead,
    message,
    messages,
    operations,
    overview,
    proof,
    workers,
)

PAGES: tuple[Page[Any], ...] = (
    overview.PAGE,
    dead.PAGE,
    cause.PAGE,
    conversations.PAGE,
    conversation.PAGE,
    messages.PAGE,
    message.PAGE,
    workers.PAGE,
    proof.PAGE,
    operations.PAGE,
    operations.ONE,
    acts.PAGE,
)
