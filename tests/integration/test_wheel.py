"""The wheel, as a user has it: in a folder with modules that are called as ours were, and under `mypy --strict`."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streams.dev.ports import free_port
from streams.dev.process import Process
from tests.conftest import World

Eventually = Callable[..., Any]

ROOT = Path(__file__).parents[2]
MAIN = "import sys; from streams.cli import main; main(sys.argv[1:])"
ENQUEUE = """
import asyncio
from sqlalchemy.ext.asyncio import create_async_engine
from streams import outbox
from streams.agents.chat_history import ChatHistoryPersist

async def main():
    outbox.start()
    engine = create_async_engine(outbox_url)
    async with engine.begin() as connection:
        message = ChatHistoryPersist(user_id=7, conversation_id="c1", role="user", message="hi")
        print(await outbox.enqueue(connection, message))
    await engine.dispose()

import os
outbox_url = os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://")
asyncio.run(main())
"""
AGENT = """
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from streams import Batch, agent, event


@event("like_added", topic="likes", key="post")
@dataclass(frozen=True, slots=True, kw_only=True)
class LikeAdded:
    post: str
    user_id: int


@agent(LikeAdded)
async def save(messages: Batch[LikeAdded], db: AsyncConnection) -> None:
    for message in messages:
        await db.execute(text("SELECT :post"), {"post": message.payload.post})
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    [file] = folder.glob("outbox_streams-*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a Python that has the wheel and what it needs, and knows nothing of this checkout."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    # What .pth files name, such as this checkout, is on no PYTHONPATH.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return kept | {"PYTHONPATH": f"{folder}:{sysconfig.get_path('purelib')}:{sysconfig.get_path('platlib')}"}


def python(*arguments: str) -> list[str]:
    """The interpreter below the virtual environment."""
    return [str(Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"), *arguments]


def test_it_brings_two_names_and_the_sql(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"streams", "pytest_outbox_streams.py"}
    assert {"streams/py.typed", "streams/_sql/schema.sql", "streams/_sql/queries/run.sql"} <= set(names)
    assert any(name.startswith("streams/_sql/migrations/versions/0001") for name in names)


async def test_a_users_own_db_queries_and_tests_shadow_nothing(
    world: World, installed: dict[str, str], eventually: Eventually, tmp_path: Path
) -> None:
    home = tmp_path / "service"
    (home / "tests").mkdir(parents=True)
    for file in ("db.py", "queries.py", "tests/__init__.py"):
        (home / file).write_text("raise ImportError(__file__)\n")
    world.environ["STREAMS_WEB__PORT"] = str(free_port())

    def start(*arguments: str) -> Process:
        log = world.directory / f"wheel-{len(world.processes)}.log"
        process = Process(python(*arguments), log, environ={**installed, **world.environ}, cwd=home)
        process.launch()
        world.processes.append(process)
        return process

    migrating = start("-c", MAIN, "migrate")
    assert await migrating.finish(60) == 0, migrating.log.read_text()
    enqueuing = start("-c", ENQUEUE)
    assert await enqueuing.finish(60) == 0, enqueuing.log.read_text()
    running = [start("-c", MAIN, "relay"), start("-m", "faust", "-A", "streams.app", "worker")]
    await eventually(lambda: world.query("SELECT status FROM outbox_state") == [("consumed",)], 60)
    assert world.query("SELECT message_content FROM chat_histories") == [("hi",)]
    assert all(process.running for process in running)


def test_a_users_agent_passes_a_strict_type_check(installed: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "likes.py").write_text(AGENT)
    ended = subprocess.run(
        python("-m", "mypy", "--strict", "likes.py"),
        cwd=tmp_path,
        env=installed | {"MYPYPATH": installed["PYTHONPATH"].split(":")[0]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "Success: no issues found in 1 source file\n"), ended.stdout
