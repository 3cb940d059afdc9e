"""Where the SQL files of `db/` are: inside an installed package, beside it in a checkout."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


@cache
def sql_folder(package: Path = _PACKAGE) -> Path:
    """The folder with `queries/` and `migrations/`.

    FileNotFoundError when this installation lacks it.

    A wheel holds it as `streams/_sql`. Beside the package it is taken only from a checkout of
    ours: beside site-packages anybody's `db/` may lie.
    """
    inside = package / "_sql"
    if inside.is_dir():
        return inside
    beside = package.parent / "db"
    if beside.is_dir() and _is_ours(package.parent / "pyproject.toml"):
        return beside
    raise FileNotFoundError(f"{inside}: expected the SQL files of outbox-streams, install it again")


def _is_ours(project: Path) -> bool:
    try:
        return bool(
            tomllib.loads(project.read_text(encoding="utf-8"))["project"]["name"]
            == "outbox-streams"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False
