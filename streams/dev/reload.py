"""Which files agents and settings are in, and when one of them has changed.

That is for `streams up --reload`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

Stamp = Mapping[Path, tuple[int, int]]


def files_of(packages: Iterable[str], *others: Path) -> Stamp:
    """Every Python file of these packages, and these others, with its time and size.

    A file that cannot be found now is left out.
    """
    importlib.invalidate_caches()
    stamps: dict[Path, tuple[int, int]] = {}
    for file in (*others, *_code(packages)):
        try:
            status = file.stat()
        except OSError:
            continue  # an editor is replacing it
        stamps[file] = (status.st_mtime_ns, status.st_size)
    return stamps


def changed(before: Stamp, after: Stamp) -> list[Path]:
    """What is new, gone or other than before, sorted."""
    return sorted(
        file for file in before.keys() | after.keys() if before.get(file) != after.get(file)
    )


def _code(packages: Iterable[str]) -> Iterator[Path]:
    for top in sorted({package.partition(".")[0] for package in packages}):
        for folder in _places(top):
            yield from [folder] if folder.is_file() else folder.rglob("*.py")


def _places(top: str) -> list[Path]:
    """The folders of a top-level package, or the file of a module.

    It is looked up without importing it, so a broken one is found too.
    """
    if top in sys.builtin_module_names:
        return []
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return [Path(folder) for folder in spec.submodule_search_locations]
    return [Path(spec.origin)] if spec.origin and spec.origin.endswith(".py") else []
