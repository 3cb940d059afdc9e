"""Who opens connections, and what a URL may say of a session."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from streams.database.sessions import SessionRefused, refuse_version, split_options

ROOT = Path(__file__).parents[2]
OPENING = re.compile(
    r"\b(?:psycopg\.(?:Async)?(?:Connection\.)?connect|Connection\.connect|create_(?:async_)?engine)\("
)


def test_one_module_opens_every_connection() -> None:
    files = [
        *ROOT.glob("streams/**/*.py"),
        *ROOT.glob("db/**/*.py"),
        ROOT / "pytest_outbox_streams.py",
    ]
    opening = {
        str(file.relative_to(ROOT))
        for file in files
        if OPENING.search(file.read_text(encoding="utf-8"))
    }
    assert opening == {"streams/database/engine.py"}


@pytest.mark.parametrize(
    ("options", "settings", "rest"),
    [
        ("", {}, ""),
        ("-c a=1 -cb=2 --c-d=3", {"a": "1", "b": "2", "c_d": "3"}, ""),
        (r"-c search_path=one,\ two -c A=x=y", {"search_path": "one, two", "a": "x=y"}, ""),
        ("-c a=1 -c a=2 -d 5", {"a": "2"}, "-d 5"),
        ("--a --b=", {"b": ""}, "--a"),
    ],
)
def test_options_are_read_as_the_server_reads_them(
    options: str, settings: dict[str, str], rest: str
) -> None:
    assert split_options(options) == (settings, rest)


@pytest.mark.parametrize("version", [90_624, 130_014, 149_999])
def test_an_old_server_is_refused(version: int) -> None:
    with pytest.raises(SessionRefused, match="is not supported: expected 15 or newer"):
        refuse_version(version)


@pytest.mark.parametrize("version", [150_000, 180_001, 190_000])
def test_a_newer_one_is_not(version: int) -> None:
    refuse_version(version)
