"""Which files are watched while agents are written, and what counts as a change."""

from __future__ import annotations

from pathlib import Path

import pytest

from streams.dev.reload import changed, files_of


def test_new_changed_and_removed_files_of_a_package_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    inner = tmp_path / "watched" / "agents"
    inner.mkdir(parents=True)
    for folder in (inner, inner.parent):
        (folder / "__init__.py").touch()
    broken, alone = inner / "broken.py", tmp_path / "watched_alone.py"
    broken.write_text("raise ImportError")  # nothing is imported to find it
    alone.write_text("")
    (inner / "data.txt").touch()
    packages = ["watched.agents", "watched_alone", "watched.agents.broken", "nowhere_at_all", "sys"]
    before = files_of(packages)
    assert set(before) == {broken, alone, inner / "__init__.py", inner.parent / "__init__.py"}
    assert changed(before, files_of(packages)) == []
    broken.write_text("mended = True")
    (inner / "new.py").touch()
    alone.unlink()
    assert changed(before, files_of(packages)) == sorted([alone, broken, inner / "new.py"])
