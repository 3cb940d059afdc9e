"""What a JVM has learnt is taken over by one of the same Java and class path, and by no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from streams.dev import learned
from streams.dev.downloads import CACHE

JARS = [Path("/a.jar"), Path("/b.jar")]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path))


def test_nothing_is_taken_over_before_something_was_learnt() -> None:
    assert learned.options(JARS) == ()
    file = learned.file_of(JARS)
    file.parent.mkdir()
    file.touch()
    assert f"-XX:AOTCache={file}" in learned.options(JARS)


def test_another_java_class_path_or_collector_has_a_file_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = {learned.file_of(JARS), learned.file_of(JARS[:1])}
    monkeypatch.setenv("JDK_JAVA_OPTIONS", "-XX:+UseZGC")
    files.add(learned.file_of(JARS))
    monkeypatch.setattr(learned, "java_release", lambda: 'JAVA_VERSION="26"\n')
    files.add(learned.file_of(JARS))
    assert len(files) == 4


@pytest.mark.parametrize(
    ("release", "can"),
    [
        ('JAVA_VERSION="25.0.2"\nMODULES="java.base"\n', True),
        ('IMPLEMENTOR="x"\nJAVA_VERSION="26"\n', True),
        ('JAVA_VERSION="21.0.4"\n', False),
        ("", False),
    ],
)
def test_java_learns_from_25_on(monkeypatch: pytest.MonkeyPatch, release: str, can: bool) -> None:
    monkeypatch.setattr(learned, "java_release", lambda: release)
    assert learned.can_learn() is can


def test_what_a_log_folder_begins_with_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.write_bytes(b"checkpoint")
    kept = tmp_path / "cache" / "learned" / "x.format"
    for _ in range(2):
        learned.keep(made, kept)
        assert kept.read_bytes() == b"checkpoint"
    assert list(kept.parent.iterdir()) == [kept]
    learned.keep(made, made / "nobody may write here")
