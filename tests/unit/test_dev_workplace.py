"""One `streams up` a folder; its note is whole, and believed only while its writer lives."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from streams.dev.workplace import Note, Workplace
from streams.errors import UsageError
from streams.settings import load

NOTE = Note(
    os.getpid(), True, "postgresql://postgres@127.0.0.1:1/streams", "127.0.0.1:2", None, None
)


def test_the_second_claim_says_who_has_the_folder(tmp_path: Path) -> None:
    with Workplace(tmp_path).claimed():
        Workplace(tmp_path).write(NOTE)
        with (
            pytest.raises(
                UsageError,
                match=rf"already runs in {tmp_path} \(pid {os.getpid()}, postgresql .*:1/streams",
            ),
            Workplace(tmp_path).claimed(),
        ):
            pass


def test_the_note_is_gone_with_its_writer(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    with place.claimed():
        place.write(NOTE)
        assert Workplace(tmp_path).note() == NOTE
    assert Workplace(tmp_path).note() is None
    assert Workplace(tmp_path).supervisor() is None


def test_a_note_whose_writer_was_killed_is_not_believed(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    with place.claimed():
        pass
    place.write(NOTE)
    assert place.note() is None


def test_settings_read_the_note(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    with place.claimed():
        place.write(NOTE)
        (tmp_path / "faust.yml").write_text("")
        settings = load(tmp_path / "faust.yml", environ={})
    assert (settings.database_url, settings.broker_url) == (NOTE.database_url, NOTE.broker_url)


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / ".dev").write_text("a file, not a folder")
    with pytest.raises(UsageError, match="cannot be written"), Workplace(tmp_path).claimed():
        pass
