"""The pages to look at, in the order of the rail: each is also a call of the API, and says its command."""

from __future__ import annotations

from typing import Any

from streams.web.page import Page
from streams.web.pages import conversations, dead

PAGES: tuple[Page[Any], ...] = (dead.PAGE, conversations.PAGE)
