"""What a manifest says of one part of the archive, and what makes it believed.

A range of ids is archived whole, before it is emptied: part 1. What was left in it (dead letters)
goes later, with another fate than it had: then it is archived once more, as part 2. So of two parts
the later one is right. A part counts only with its manifest, which is written last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, LiteralString

import msgspec

from streams.errors import StreamsError

FORMAT = 1
TABLES: tuple[LiteralString, LiteralString] = ("outbox", "outbox_state")
SUFFIX = ".json"


class ArchiveFailed(StreamsError):
    """The archive cannot be written or believed; one line, never with what a message says."""


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """What tells whether a range is as it was archived.

    rows, states: how many; unsettled: a digest of the ids that were not settled; erased: how many
    acts of erasure there were, and the newest of them.
    """

    rows: int
    states: int
    unsettled: str
    erased: tuple[int, int]


class File(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a part: its name, size and digest; rows and columns, as (name, type)."""

    name: str
    bytes: int
    sha256: str
    rows: int
    columns: list[tuple[str, str]]


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a range.

    whole: the range was never emptied before; database: which one it is, see
    outbox_identity(); at, oldest, newest: when it was archived, and when its first and last rows
    were written (ISO 8601, UTC); sha256: of all the rest.
    """

    format: int
    first: int
    last: int
    part: int
    whole: bool
    database: str
    at: str
    oldest: str | None
    newest: str | None
    content: Content
    outbox: File
    outbox_state: File
    sha256: str = ""

    @property
    def bytes(self) -> int:
        """Of both files."""
        return self.outbox.bytes + self.outbox_state.bytes

    @property
    def name(self) -> str:
        """What its files are called, but for their ends."""
        return part_name(self.first, self.last, self.part)


def part_name(first: int, last: int, part: int) -> str:
    """Names that sort as ids do."""
    return f"{first:019}-{last:019}.{part}"


def digest_of_ids(ids: Iterable[int]) -> str:
    """The same for the same ids, in any order."""
    listed = ",".join(map(str, sorted(ids)))
    return hashlib.sha256(listed.encode()).hexdigest()


def encode(part: Part) -> bytes:
    """The manifest as a file."""
    signed = msgspec.structs.replace(part, sha256=_digest(part))
    return msgspec.json.format(msgspec.json.encode(signed), indent=2) + b"\n"


def decode(data: bytes, name: str) -> Part:
    """A manifest as it was written; ArchiveFailed when it is none, or was changed since."""
    try:
        raw: dict[str, Any] = msgspec.json.decode(data)
        if isinstance(raw, dict) and raw.get("format", FORMAT) != FORMAT:
            raise ArchiveFailed(
                f"{name}: its format is {raw['format']!r:.20}, and this release reads {FORMAT}"
            )
        part = msgspec.convert(raw, Part)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise ArchiveFailed(f"{name} is no manifest of an archive, or was cut short") from None
    if _digest(part) != part.sha256:
        raise ArchiveFailed(f"{name} was changed after it was written")
    return part


def _digest(part: Part) -> str:
    plain = msgspec.structs.replace(part, sha256="")
    return hashlib.sha256(msgspec.json.encode(plain)).hexdigest()
