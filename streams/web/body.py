"""The body of a request: with a limit and a time, and read only of whoever may send it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from streams.web.messages import Refusal

BODY_SECONDS = 10.0


async def read_body(chunks: AsyncIterator[bytes], most: int) -> bytes:
    """All of it; Refusal when it is longer than `most` bytes, or slower than anybody sends it."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in chunks:
                body += chunk
                if len(body) > most:
                    raise Refusal(413, f"the body is longer than {most:,} bytes")
    except TimeoutError:
        raise Refusal(408, f"the body did not come within {BODY_SECONDS:g} s") from None
    return bytes(body)
