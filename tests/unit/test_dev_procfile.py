"""The Procfile says what runs; without one it is the relay and the workers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from streams.dev.procfile import command, lines
from streams.errors import UsageError


def test_without_a_procfile_relay_and_worker_run(tmp_path: Path) -> None:
    assert list(lines(tmp_path)) == ["relay", "worker"]


def test_the_procfile_of_this_project_is_the_default() -> None:
    root = Path(__file__).parents[2]
    assert lines(root) == lines(root / "streams")


def test_every_line_of_a_procfile_is_a_process(tmp_path: Path) -> None:
    (tmp_path / "Procfile").write_text(
        "# ours\nrelay: streams relay\n\nshop: python -m shop --port 80\n"
    )
    assert lines(tmp_path) == {"relay": "streams relay", "shop": "python -m shop --port 80"}


@pytest.mark.parametrize("text", ["", "no colon here\n", "twice: a\ntwice: b\n"])
def test_a_procfile_that_cannot_be_used_is_one_clear_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "Procfile").write_text(text)
    with pytest.raises(UsageError, match="Procfile"):
        lines(tmp_path)


def test_programs_beside_this_python_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEVEL", "info")
    assert command("python -l $LEVEL 'two words'") == (
        str(Path(sys.executable).parent / "python"),
        "-l",
        "info",
        "two words",
    )


def test_a_program_that_is_nowhere_is_one_clear_line() -> None:
    with pytest.raises(UsageError, match="no-such-program is neither beside"):
        command("no-such-program --now")
