"""Queries: every statement is named once, explained, used, and is one statement."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from streams.database import queries
from streams.database.queries import query

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "db" / "queries").glob("*.sql"))
NAMES = sorted(queries._load())


def test_an_unknown_query_is_named() -> None:
    with pytest.raises(KeyError, match="nowhere"):
        query("nowhere")


@pytest.mark.parametrize("name", NAMES)
def test_a_query_starts_with_a_line_of_why_and_is_one_statement(name: str) -> None:
    text = query(name)
    assert text.startswith("-- ")
    statement = re.sub(r"^--.*$", "", text, flags=re.MULTILINE).strip()
    assert statement
    assert ";" not in statement
    assert [line for line in text.splitlines() if len(line) > 100] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_query_is_used(name: str) -> None:
    sources = (
        path.read_text(encoding="utf-8")
        for folder in ("streams",)
        for path in (ROOT / folder).rglob("*.py")
    )
    assert any(f'"{name}"' in source for source in sources)


# What keeps relays of an earlier release from joining, beside the lock of this outbox.
OF_ANY_OUTBOX = {"relay_keep_out", "relay_let_in", "relays_earlier"}


def test_each_lock_of_ours_is_that_of_this_outbox() -> None:
    """Another outbox in this database has locks of the same names."""
    locks = {
        name for name in NAMES if "'outbox-streams " in query(name) or "(lock)s" in query(name)
    }
    assert len(locks) > 10
    shared = {name for name in locks if "'outbox'::regclass::oid" not in query(name)}
    assert shared == OF_ANY_OUTBOX


def test_no_statement_is_lost_between_headings() -> None:
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        headings = re.findall(r"^-- (\S+) --$", text, flags=re.MULTILINE)
        assert text.startswith(f"-- {headings[0]} --"), (
            f"{file.name} begins with something that has no name"
        )
        assert set(headings) <= set(NAMES), (
            f"{file.name} has a heading that is not lower case with underscores"
        )


def test_a_query_defined_twice_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "queries").mkdir()
    for file in ("a.sql", "b.sql"):
        (tmp_path / "queries" / file).write_text(
            "-- one --\n-- Why.\nSELECT 1;\n", encoding="utf-8"
        )
    monkeypatch.setattr(queries, "sql_folder", lambda: tmp_path)
    with pytest.raises(
        ValueError, match=r"query 'one' is defined twice, again in db/queries/b\.sql"
    ):
        queries._load.__wrapped__()
