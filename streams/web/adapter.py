"""What both adapters do alike.

They read a body that has a limit and a time, and answer what is too much.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from streams.web import guard, messages
from streams.web.messages import Response

BODY_SECONDS = 10.0


class TooMuch(Exception):
    """A body that is longer than its route takes, or slower than anybody sends it."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.response: Response = guard.guarded(messages.json({"error": line}, status))


async def read_body(chunks: AsyncIterator[bytes], most: int) -> bytes:
    """All of it; TooMuch when it is not."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in chunks:
                body += chunk
                if len(body) > most:
                    raise TooMuch(413, f"the body is longer than {most:,} bytes")
    except TimeoutError:
        raise TooMuch(408, f"the body did not come within {BODY_SECONDS:g} s") from None
    return bytes(body)
