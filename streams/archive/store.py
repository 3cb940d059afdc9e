"""A folder, or a bucket: any place that fsspec can write to.

A part is three files beside one another. Its manifest is written last, and what has none was not
finished: it is written over.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

import psycopg

from streams.archive.parts import SUFFIX, ArchiveFailed, File, Part, decode, encode, part_name
from streams.errors import StreamsError
from streams.extras import lacks
from streams.settings import redact

CHUNK = 1 << 20


class Store:
    """The archive at `target`, a folder or a URL of fsspec.

    ExtraMissing without the extra `archive`; ArchiveFailed names the target, and what is wrong.
    """

    def __init__(self, target: str) -> None:
        try:
            import fsspec
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise lacks("outbox.archive", "archive", error) from None
        self._shown = redact(target) if "://" in target else target
        with self._told("cannot be reached"):
            self._fs, self._folder = fsspec.core.url_to_fs(target)

    def parts(self) -> list[Part]:
        """All of them, in the order of ids; ArchiveFailed names a manifest that is not believed."""
        return self._parts("")

    def about(self, first: int, last: int) -> list[Part]:
        """Parts of exactly this range, the first one first."""
        return self._parts(part_name(first, last, 0).removesuffix("0"))

    def _parts(self, prefix: str) -> list[Part]:
        with self._told("cannot be listed"):
            self._fs.invalidate_cache()  # another process may write here too
            exists = self._fs.exists(self._folder)
            paths = self._fs.ls(self._folder, detail=False) if exists else []
        names = [PurePosixPath(path).name for path in paths]
        parts = [
            self._manifest(self._path(name))
            for name in names
            if name.startswith(prefix) and name.endswith(SUFFIX)
        ]
        return sorted(parts, key=lambda part: (part.first, part.part))

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
        """Its manifest: from now on the part counts."""
        name = part.name + SUFFIX
        with self.writing(name) as written:
            written.write(encode(part))
        if self._manifest(self._path(name)).content != part.content:
            raise ArchiveFailed(f"{self._shown}: {name} is not what was written")

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
                    f"{self._shown}: {file.name} was changed after it was written:"
                    f" {size} bytes instead of {file.bytes}, or another digest"
                )

    def _path(self, name: str) -> str:
        return str(PurePosixPath(self._folder) / name)

    def _manifest(self, path: str) -> Part:
        name = PurePosixPath(path).name
        with self._told(f"{name} cannot be read"):
            data = self._fs.cat_file(path)
        return decode(data, f"{self._shown}: {name}")

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
            raise ArchiveFailed(f"archive {self._shown}: {what}: {reason}") from None


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
