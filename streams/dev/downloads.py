"""Java libraries by their Maven coordinates, downloaded once into a cache of the user's."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from streams.dev.pins import check, pinned
from streams.dev.wheels import folder
from streams.errors import ServiceUnreachable, StreamsError, UsageError

CACHE = "OUTBOX_STREAMS_CACHE"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a download is; `of` is None while the list of files is still being made."""

    what: str
    files: int
    of: int | None
    bytes: int


Report = Callable[[Progress], None]


class Abandoned(StreamsError):
    """Whoever wanted the download is gone."""


def cache() -> Path:
    """Where downloads are kept.

    That is $OUTBOX_STREAMS_CACHE, else outbox-streams in the user's cache folder. UsageError for a
    user who has no home.
    """
    if named := os.environ.get(CACHE):
        return Path(named)
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches) / "outbox-streams"
    try:
        return Path.home() / ".cache" / "outbox-streams"
    except RuntimeError:  # neither HOME nor a passwd entry
        raise UsageError(
            f"uid {os.getuid()} has no home folder to keep downloads in: set ${CACHE} to a folder"
        ) from None


def resolve(coordinates: str, report: Report | None = None) -> list[Path]:
    """The jars of `group:artifact:version[+...]` and all they need, in the order of the class path.

    Safe from several processes at once; an interrupted download leaves nothing half-done behind.
    Each jar is the one that its checksum in `jars.sha256` says, or ServiceUnreachable names it.
    """
    root = cache()
    # Another list of checksums is another listing: what an older version took unseen is looked at.
    wanted = orjson.dumps([coordinates, sorted(pinned(coordinates).items())])
    listing = root / "classpath" / f"{hashlib.sha256(wanted).hexdigest()[:16]}.json"
    if jars := _listed(listing, root):
        return jars
    folder("jgo")
    report = report or _ignore
    try:
        listing.parent.mkdir(parents=True, exist_ok=True)
        with _lock(root / "lock", lambda: report(Progress(coordinates, 0, None, 0))):
            if jars := _listed(listing, root):
                return jars
            # jgo is slow to import and only needed for the first start.
            from streams.dev.maven import download

            jars = download(coordinates, root / "maven", report)
            check(coordinates, jars, root / "maven")
            _write(listing, orjson.dumps([str(jar.relative_to(root)) for jar in jars]))
            return jars
    except OSError as error:
        raise ServiceUnreachable(
            f"{coordinates} cannot be kept in {root}: {error.strerror or error}"
            f" (${CACHE} names another folder)"
        ) from None


async def resolve_in_thread(coordinates: str, report: Report | None = None) -> list[Path]:
    """The same without blocking the loop; cancelled, the download stops too."""
    abandoned = threading.Event()

    def check(progress: Progress) -> None:
        if abandoned.is_set():
            raise Abandoned("download abandoned")
        (report or _ignore)(progress)

    try:
        return await asyncio.to_thread(resolve, coordinates, check)
    except asyncio.CancelledError:
        abandoned.set()
        raise


def _listed(listing: Path, root: Path) -> list[Path]:
    try:
        jars = [root / name for name in orjson.loads(listing.read_bytes())]
    except (OSError, ValueError):
        return []
    return jars if all(jar.is_file() for jar in jars) else []


@contextmanager
def _lock(file: Path, waiting: Callable[[], None]) -> Iterator[None]:
    with file.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting()
                time.sleep(0.2)
        yield


def _write(file: Path, content: bytes) -> None:
    draft = file.with_suffix(".new")
    draft.write_bytes(content)
    draft.replace(file)


def _ignore(progress: Progress) -> None:
    pass
