"""No child outlives its parent, however the parent ends."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from streams.dev.process import Process, until

SECONDS = 60.0  # in which a small process begins and ends on a busy machine
PARENT = """
import asyncio, sys, time
from pathlib import Path
from streams.dev.postgres import PostgresServer
from streams.dev.process import Process

folder = Path(sys.argv[1])
server = PostgresServer(folder / "postgres")
asyncio.run(server.start())
sleeper = Process((sys.executable, "-c", "import time; time.sleep(600)"), folder / "log")
sleeper.launch()
print(server.pid, sleeper.pid, flush=True)
time.sleep(600)
"""


def gone(pid: int) -> bool:
    """Whether no such process runs; one that only waits to be reaped does not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_a_parent_killed_with_9_leaves_no_child(tmp_path: Path) -> None:
    parent = Process((sys.executable, "-c", PARENT, tmp_path), tmp_path / "pids")
    parent.launch()
    assert await until(lambda: len(parent.last_words().split()) == 2, 120), parent.last_words()
    server, sleeper = map(int, parent.last_words().split())
    family = [
        server,
        sleeper,
        *(child.pid for child in psutil.Process(server).children(recursive=True)),
    ]
    assert len(family) > 4
    assert parent.pid is not None
    os.kill(parent.pid, signal.SIGKILL)
    assert await parent.finish(SECONDS) == -signal.SIGKILL
    assert await until(lambda: all(map(gone, family)), SECONDS)


async def test_kill_takes_the_descendants_along(tmp_path: Path) -> None:
    script = (
        "import subprocess, time; subprocess.Popen(['sleep', '600'], start_new_session=True);"
        " time.sleep(600)"
    )
    process = Process((sys.executable, "-c", script), tmp_path / "log")
    process.launch()
    pid = process.pid
    assert pid is not None
    # The guard first becomes the program; then the program has a child.
    assert await until(lambda: bool(psutil.Process(pid).children()), SECONDS)
    [child] = psutil.Process(pid).children()
    process.kill()
    assert gone(pid)
    assert gone(child.pid)


async def test_a_program_that_cannot_be_run_says_so_in_its_log(tmp_path: Path) -> None:
    process = Process((tmp_path / "nothing",), tmp_path / "log")
    process.launch()
    assert await process.finish(SECONDS) == 1
    assert process.last_words() == f"{tmp_path}/nothing cannot be run: No such file or directory"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes nobody")
async def test_root_becomes_nobody_where_it_owns_a_folder(tmp_path: Path) -> None:
    process = Process(("/usr/bin/id", "-u"), tmp_path / "log", owned=tmp_path)
    process.launch()
    assert await process.finish(SECONDS) == 0
    assert process.last_words() == "65534"
