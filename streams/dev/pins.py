"""Which files the downloads have to be, by checksums of our own in `jars.sha256`.

After other coordinates were chosen, `python -m streams.dev.pins` downloads them and prints that
file again, to be looked at.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path

from streams.errors import ServiceUnreachable

FILE = "jars.sha256"


def pinned(coordinates: str) -> Mapping[str, str]:
    """The checksum of each jar, by its path in a repository, of these coordinates.

    A jar that nobody has pinned is left out.
    """
    return _pins().get(coordinates, {})


def check(coordinates: str, jars: Sequence[Path], repository: Path) -> None:
    """ServiceUnreachable names the first jar that is another one than it was when it was pinned.

    That file is removed.
    """
    if not (pins := pinned(coordinates)):
        return
    files = {jar.relative_to(repository).as_posix(): jar for jar in jars}
    for name in sorted(pins.keys() ^ files.keys()):
        raise ServiceUnreachable(
            f"the Maven repository {'adds' if name in files else 'lacks'} {name} for {coordinates}"
        )
    for name, jar in files.items():
        checksum = _sha256(jar)
        if checksum != pins[name]:
            jar.unlink()
            raise ServiceUnreachable(
                f"the Maven repository's {name} has sha256 {checksum}, expected {pins[name]}:"
                " it is not the file that this version was made with"
            )


@cache
def _pins() -> Mapping[str, Mapping[str, str]]:
    pins: dict[str, dict[str, str]] = {}
    for line in resources.files("streams.dev").joinpath(FILE).read_text("ascii").splitlines():
        if line.startswith("["):
            pins[line.strip("[]")] = jars = {}
        elif line and not line.startswith("#"):
            checksum, name = line.split()
            jars[name] = checksum
    return pins


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _print() -> None:
    from streams.dev.connect import CONNECT
    from streams.dev.downloads import cache as downloads
    from streams.dev.downloads import resolve
    from streams.dev.kafka import KAFKA

    say = sys.stdout.write
    say("# The sha256 of every jar, by the coordinates that need it: see streams/dev/pins.py\n")
    for coordinates in (KAFKA, CONNECT):
        say(f"\n[{coordinates}]\n")
        for jar in sorted(resolve(coordinates)):
            say(f"{_sha256(jar)}  {jar.relative_to(downloads() / 'maven').as_posix()}\n")


if __name__ == "__main__":
    _print()
