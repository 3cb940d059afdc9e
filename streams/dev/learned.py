"""What a JVM learnt when it ran once, kept so that the next one starts at half the price.

A JVM reads, checks and links thousands of classes before a broker takes work. Java 25 and later can
write all that down when a process ends, and take it over at the next start (JEP 483 and 514). The
file is good for one Java and one class path: its name says which. Beside it is what Kafka's tool
writes into an empty log folder, which is the same each time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from streams.dev.downloads import cache
from streams.dev.wheels import java_home

OLDEST = 25
"""The first Java that can do it."""


def options(jars: Sequence[Path]) -> tuple[str, ...]:
    """What lets a JVM with this class path take over what was learnt, if something was."""
    file = file_of(jars)
    return (f"-XX:AOTCache={file}", "-Xlog:aot=off,cds=off") if file.is_file() else ()


def file_of(jars: Sequence[Path]) -> Path:
    """Where it is kept what a JVM with this class path has learnt."""
    # What was learnt under one garbage collector is of no use under another one.
    known = [java_release(), os.environ.get("JDK_JAVA_OPTIONS", ""), *map(str, jars)]
    name = hashlib.sha256(os.pathsep.join(known).encode()).hexdigest()[:16]
    return cache() / "learned" / f"{name}.aot"


def format_of(jars: Sequence[Path]) -> Path:
    """Where it is kept what a Kafka of this class path begins with in an empty log folder."""
    return file_of(jars).with_suffix(".format")


def keep(file: Path, place: Path) -> None:
    """Keep a copy of a file there, whole or not at all; others may do the same meanwhile.

    A cache folder that nobody may write to is no reason not to start.
    """
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="outbox-keep-", dir=place.parent) as folder:
            shutil.copyfile(file, Path(folder) / place.name).rename(place)


def java_release() -> str:
    """What the Java runtime says of itself, '' where it says nothing."""
    try:
        return (java_home() / "release").read_text()
    except OSError:
        return ""


def can_learn() -> bool:
    """Whether this Java is new enough."""
    for line in java_release().splitlines():
        name, _, value = line.partition("=")
        if name == "JAVA_VERSION":
            return int(value.strip('"').partition(".")[0]) >= OLDEST
    return False
