"""Positions in PostgreSQL's write-ahead log: `16/B374D848` as text, one number inside."""

from __future__ import annotations


def lsn_text(position: int) -> str:
    """The position as PostgreSQL writes it."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def lsn_number(text: str) -> int:
    """The position as one number that can be compared."""
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) | int(low, 16)
