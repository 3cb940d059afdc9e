"""What dies starts again, later each time, and ends when told to."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from streams.dev.process import until
from streams.dev.procfile import Program
from streams.dev.screen import Screen
from streams.dev.supervised import LONGEST, Supervised, delay, kept_running
from streams.dev.supervisor import Supervisor, UpOptions
from streams.dev.workplace import Workplace


def test_the_pause_before_a_start_doubles_up_to_a_limit() -> None:
    assert [delay(failure) for failure in range(1, 8)] == [
        0.5,
        1.0,
        2.0,
        4.0,
        8.0,
        LONGEST,
        LONGEST,
    ]


def supervised(folder: Path, script: str, said: list[str]) -> Supervised:
    """A Python script under supervision."""
    place = Workplace(folder)
    place.logs.mkdir(parents=True)
    return Supervised(
        Program("it", (sys.executable, "-c", script)), place, os.environ, said.append, lambda: None
    )


async def test_a_process_that_is_killed_starts_again(tmp_path: Path) -> None:
    said: list[str] = []
    it = supervised(tmp_path, "import time; time.sleep(60)", said)
    async with kept_running([it]):
        assert await until(lambda: it.running.pid is not None, 5)
        first = it.running.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        assert await until(lambda: it.running.pid not in (None, first), 5)
    assert it.running.pid is None
    [line] = said
    assert line.startswith("it was killed by SIGKILL, starts again in 0.5 s")


async def test_a_renewed_process_ends_in_order_and_starts_at_once_without_a_word(
    tmp_path: Path,
) -> None:
    said: list[str] = []
    it = supervised(tmp_path, "import time; time.sleep(60)", said)
    async with kept_running([it]):
        assert await until(lambda: it.running.pid is not None, 5)
        first = it.running.pid
        it.renew()
        assert await until(lambda: it.running.pid not in (None, first), 5)
    assert said == []


async def test_settings_that_are_half_written_are_waited_for_and_end_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("streams.dev.supervisor.RELOAD_SECONDS", 0.05)
    said, lines = StringIO(), list[str]()
    settings = tmp_path / "faust.yml"
    settings.write_text("web: {acts_url: postgresql://old}\n")
    script = "import os, time; print(os.environ['STREAMS_WEB__ACTS_URL'], flush=True)"
    it = supervised(tmp_path, f"{script}; time.sleep(60)", lines)
    screen = Screen(Console(file=said, soft_wrap=True))
    supervisor = Supervisor(Workplace(tmp_path), UpOptions(reload=True), screen)
    supervisor._processes = [it]
    it.renew(supervisor._environ())
    async with kept_running([it]):
        assert await until(lambda: it.log.exists() and "postgresql" in it.log.read_text(), 5)
        first = it.running.pid
        reloading = asyncio.create_task(supervisor._reload([], await supervisor._files()))
        settings.write_text("web: {acts_url: postgresql://new, host: '")
        assert await until(lambda: "waiting for settings" in said.getvalue(), 5)
        settings.unlink()  # as an editor that makes it anew
        settings.write_text("web: {acts_")
        assert await until(lambda: said.getvalue().count("waiting for settings") == 2, 5)
        assert it.running.pid == first
        settings.write_text(
            "agents: [streams.agents, shop.agents]\nweb: {acts_url: 'postgresql://new'}\n"
        )
        assert await until(lambda: it.running.pid not in (None, first), 5)
        # The trial's own database all the same, not the one that the file names.
        assert await until(lambda: it.log.read_text().count("@127.0.0.1:") == 2, 5)
        assert not reloading.done()
        reloading.cancel()
    assert "faust.yml changed, all processes start again" in said.getvalue()
    assert supervisor._settings.agents == ("streams.agents", "shop.agents")
    assert lines == []


async def test_the_end_of_a_process_is_told_with_its_last_words(tmp_path: Path) -> None:
    said: list[str] = []
    async with kept_running(
        [supervised(tmp_path, "raise SystemExit('the settings are wrong')", said)]
    ):
        assert await until(lambda: len(said) == 1, 5)
    assert said[0].startswith("it ended with status 1, starts again in 0.5 s")
    assert said[0].endswith("the settings are wrong")


async def test_a_process_that_ignores_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.dev.supervised.GRACE", 0.3)
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf',"
        " flush=True); time.sleep(60)"
    )
    it = supervised(tmp_path, deaf, [])
    async with asyncio.timeout(10), kept_running([it]):
        assert await until(lambda: it.log.exists() and "deaf" in it.log.read_text(), 5)
    assert it.running.pid is None
