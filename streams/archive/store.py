"""A folder, or a bucket: any place that fsspec can write to.

A part is three files beside one another. Its manifest is written last, and what has none was not
finished. No file of rows is ever written over: whoever was overtaken (a machine that was paused, a
slow place) writes into files of its own, that no manifest names.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath
from typing import Any

import psycopg

from streams.archive.parts import SUFFIX, ArchiveFailed, File, Part, decode, encode, part_name
from streams.errors import StreamsError
from streams.extras import lacks
from streams.settings import redact

CHUNK = 1 << 20
PART = re.compile(r"(\d{19})-(\d{19})\.")
"""How the names of a part begin: with the first and the last id, see `part_name`."""


class Store:
    """The archive at `target`, a folder or a URL of fsspec.

    `there` is whether the last look found the folder; `shown` is the target without its password.

    ExtraMissing without the extra `archive`; ArchiveFailed names the target, and what is wrong.
    """

    def __init__(self, target: str) -> None:
        try:
            import fsspec
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise lacks("outbox.archive", "archive", error) from None
        self.shown = redact(target) if "://" in target else target
        self.there = False  # as of the last look
        with self._told("cannot be reached"):
            self._fs, self._folder = fsspec.core.url_to_fs(target)

    def parts(self) -> tuple[list[Part], list[ArchiveFailed]]:
        """All of them, in the order of ids, and what is wrong with manifests not believed."""
        parts, faults = list[Part](), list[ArchiveFailed]()
        for name in self._names():
            try:
                parts.append(self._manifest(name))
            except ArchiveFailed as error:
                faults.append(error)
        return sorted(parts, key=_place), faults

    def holding(self, outbox_id: int) -> list[Part]:
        """Parts of the ranges that have this id, the first one first.

        ArchiveFailed names one of their manifests that is not believed; no other is read.
        """
        return self._parts(
            lambda name: bool(
                (bounds := PART.match(name)) and int(bounds[1]) <= outbox_id <= int(bounds[2])
            )
        )

    def about(self, first: int, last: int) -> list[Part]:
        """Parts of exactly this range, the first one first."""
        prefix = part_name(first, last, 0).removesuffix("0")
        return self._parts(lambda name: name.startswith(prefix))

    def _parts(self, wanted: Callable[[str], bool]) -> list[Part]:
        return sorted((self._manifest(name) for name in self._names() if wanted(name)), key=_place)

    def numbers(self, first: int, last: int) -> set[int]:
        """The numbers of the parts of exactly this range of which any file is there."""
        prefix = part_name(first, last, 0).removesuffix("0")
        rest = [name.removeprefix(prefix) for name in self._files() if name.startswith(prefix)]
        return {int(number) for each in rest if (number := each.partition(".")[0]).isdecimal()}

    def _names(self) -> list[str]:
        """The names of all manifests."""
        return [name for name in self._files() if name.endswith(SUFFIX)]

    def _files(self) -> list[str]:
        """The names of all files.

        None when the folder is not there; that it cannot be looked at is an error, not that.
        """
        with self._told("cannot be listed"):
            self._fs.invalidate_cache()  # another process may write here too
            try:
                # Not `exists`, which takes whatever goes wrong for "is not there".
                paths, self.there = self._fs.ls(self._folder, detail=False), True
            except FileNotFoundError:
                paths, self.there = [], False
            if paths == [self._folder] and self._fs.isfile(self._folder):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return sorted(PurePosixPath(path).name for path in paths)

    @contextmanager
    def reading(self, file: File) -> Iterator[Any]:
        """The file, open."""
        with (
            self._told(f"{file.name} cannot be read"),
            self._fs.open(self._path(file.name), "rb") as opened,
        ):
            yield opened

    @contextmanager
    def writing(self, name: str) -> Iterator[Written]:
        """A file that is written anew, and is on the disk in the end."""
        with self._told(f"{name} cannot be written"):
            self._fs.makedirs(self._folder, exist_ok=True)
            with self._fs.open(self._path(name), "wb") as opened:
                written = Written(opened)
                try:
                    yield written
                finally:
                    written.ended = True
            self._flush(name)

    def save(self, part: Part) -> None:
        """Its manifest: from now on the part counts.

        ArchiveFailed when there is one: whoever wrote it was not overtaken, and may have emptied
        the range by it.
        """
        name, data = part.name + SUFFIX, encode(part)
        if name in self._names():
            raise ArchiveFailed(
                f"archive {self.shown}: {name} was written by another process meanwhile: it stays,"
                " and the range is archived once more where it changed since"
            )
        with self.writing(name) as written:
            written.write(data)
        if encode(self._manifest(name)) != data:
            raise ArchiveFailed(f"{self.shown}: {name} is not what was written")
        self._sweep(part)

    def _sweep(self, part: Part) -> None:
        """Take away what was begun of this part and given up: its rows would be there twice."""
        ours = {part.name + SUFFIX, part.outbox.name, part.outbox_state.name}
        left = [name for name in self._files() if name.startswith(f"{part.name}.")]
        for name in left:
            if name not in ours:
                with suppress(Exception):  # whatever a driver of fsspec raises: it stays
                    self._fs.rm_file(self._path(name))

    def verify(self, part: Part) -> None:
        """Read both files to their ends; ArchiveFailed names one that is not what was written."""
        for file in (part.outbox, part.outbox_state):
            digest, size = hashlib.sha256(), 0
            with self.reading(file) as opened:
                while data := opened.read(CHUNK):
                    digest.update(data)
                    size += len(data)
            if (size, digest.hexdigest()) != (file.bytes, file.sha256):
                raise ArchiveFailed(
                    f"{self.shown}: {file.name} was changed after it was written:"
                    f" {size} bytes instead of {file.bytes}, or another digest"
                )

    def _path(self, name: str) -> str:
        return str(PurePosixPath(self._folder) / name)

    def _manifest(self, name: str) -> Part:
        with self._told(f"{name} cannot be read"):
            data = self._fs.cat_file(self._path(name))
        part = decode(data, f"{self.shown}: {name}")
        # Parts are found by their names.
        if part.name + SUFFIX != name:
            raise ArchiveFailed(f"{self.shown}: {name} is the manifest of {part.name}")
        return part

    def _flush(self, name: str) -> None:
        """Let a local disk have it; other places say when they have it."""
        if self._fs.protocol not in ("file", ("file", "local")):
            return
        for path in (self._path(name), self._folder):
            number = os.open(path, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """What goes wrong there is told in one line, without anything that was written."""
        try:
            yield
        except (StreamsError, psycopg.Error):
            raise
        except Exception as error:  # whatever a driver of fsspec raises
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise ArchiveFailed(f"archive {self.shown}: {what}: {reason}") from None


def _place(part: Part) -> tuple[int, int]:
    return part.first, part.part


class Written:
    """An open file that knows what was written to it."""

    closed = False
    ended = False

    def __init__(self, opened: Any) -> None:
        self._opened, self._digest, self.bytes = opened, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        """Write all of it; what a writer that was given up still writes is lost."""
        view = memoryview(data)
        if self.ended:
            return view.nbytes
        self._opened.write(view)
        self._digest.update(view)
        self.bytes += view.nbytes
        return view.nbytes

    @property
    def sha256(self) -> str:
        """Of what was written so far."""
        return self._digest.hexdigest()

    def writable(self) -> bool:
        """Whether it can be written."""
        return True

    def readable(self) -> bool:
        """Whether it can be read."""
        return False

    def seekable(self) -> bool:
        """Whether one can go back in it."""
        return False

    def tell(self) -> int:
        """How far it is."""
        return self.bytes

    def flush(self) -> None:
        """Nothing: it is flushed when it is closed."""

    def close(self) -> None:
        """Nothing: whoever opened it closes it."""
